"""Contrastive losses: pure maths on tensors, torch only."""

from fcl.losses.fcl import FCLLoss, FCLTerms

__all__ = ["FCLLoss", "FCLTerms"]

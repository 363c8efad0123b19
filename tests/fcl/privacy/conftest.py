"""The engines' toy cache serves here too."""

from tests.fcl.engines.conftest import cache

__all__ = ["cache"]

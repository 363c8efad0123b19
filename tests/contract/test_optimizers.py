"""The fused optimizer of the configs makes the steps of the plain one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fcl

CONFIGS = Path(fcl.__file__).parents[1] / "configs"
DECLARED = {
    "pretrain": lambda config: config["optimizer"],
    "finetune": lambda config: config["train"]["optimizer"],
}


@pytest.mark.parametrize("name", DECLARED)
def test_fused_steps_are_those_of_the_plain_optimizer(name: str) -> None:
    declared = DECLARED[name](json.loads((CONFIGS / f"{name}.json").read_text()))
    assert (declared["_target_"], declared["fused"]) == ("torch.optim.AdamW", True)
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.InstanceNorm2d(8, affine=True), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    fused = copy.deepcopy(plain)
    optimizers = [
        torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2, fused=network is fused, foreach=False)
        for network in (plain, fused)
    ]
    for _ in range(20):
        image = torch.randn(4, 1, 8, 8)
        for network, optimizer in zip((plain, fused), optimizers, strict=True):
            optimizer.zero_grad()
            network(image).square().mean().backward()
            optimizer.step()
    for expected, found in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

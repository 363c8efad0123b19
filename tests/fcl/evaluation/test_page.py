from __future__ import annotations

import pytest

from fcl.evaluation.page import machine_facts, show_mib, show_number, show_spread


def test_machine_facts_name_versions() -> None:
    facts = machine_facts()
    assert "torch " in facts["Versions"]
    assert facts["Processor"].endswith(" cores")


@pytest.mark.parametrize(("count", "shown"), [(2**20, "1.00"), (2**19, "0.5000"), (0, "0.0000"), (5 * 2**20, "5.00")])
def test_small_traffic_keeps_its_digits(count: float, shown: str) -> None:
    assert show_mib(count) == shown


def test_missing_values_are_a_dash_and_a_single_one_has_no_spread() -> None:
    assert show_number(None, 3) == "–"
    assert show_number(0.1, 2, "+") == "+0.10"
    assert show_spread({"mean": 0.5, "std": None}, 2) == "0.50"
    assert show_spread({"mean": 0.5, "std": 0.25}, 2) == "0.50 ± 0.25"
    assert show_spread({"mean": None, "std": None}, 2) == "–"

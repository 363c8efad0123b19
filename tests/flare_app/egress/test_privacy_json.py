"""The samples of ``privacy.json``, read by FLARE's own code: the sample that FLARE ships ends every job."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from nvflare.apis.fl_constant import FilterKey
from nvflare.private.privacy_manager import PrivacyManager

from flare_app.egress import EgressFilter, EgressPolicy
from tests.flare_app.egress.conftest import SAMPLES


@pytest.mark.parametrize(
    ("sample", "policy"),
    [
        ("privacy.json", EgressPolicy(routes=("peer",))),
        ("privacy_weights_only.json", EgressPolicy(features=(), statistics=())),
    ],
)
def test_flare_builds_the_filters_of_the_sample(
    privacy_manager: Callable[[str], PrivacyManager], sample: str, policy: EgressPolicy
) -> None:
    scope = privacy_manager(sample).default_scope
    assert scope.name == "default"
    results, requests = scope.task_result_filters, scope.task_data_filters
    assert [type(entry) for entry in results[FilterKey.OUT]] == [EgressFilter]
    assert [type(entry) for entry in requests[FilterKey.OUT]] == [EgressFilter]
    assert results[FilterKey.IN] == requests[FilterKey.IN] == []
    assert results[FilterKey.OUT][0]._policy.digest == policy.digest


@pytest.mark.parametrize("sample", ["privacy.json", "privacy_weights_only.json"])
def test_sample_offers_a_job_no_second_scope_to_choose(sample: str) -> None:
    content = json.loads((SAMPLES / sample).read_text())
    assert [scope["name"] for scope in content["scopes"]] == [content["default_scope"]]

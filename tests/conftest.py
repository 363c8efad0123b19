"""Order of the tests, and what several rooms' tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: at the end, one of the workers would wait for the other's minutes."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def own_thread_count() -> Iterator[None]:
    """For modules whose configs set torch's threads: the next module finds them as they were."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

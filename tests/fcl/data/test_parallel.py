from __future__ import annotations

import threading

import pytest
import torch

from fcl.data.parallel import in_order, one_thread_per_operation


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_results_come_in_the_order_of_the_items(threads, count):
    assert list(in_order(lambda number: number**2, range(count), threads)) == [n**2 for n in range(count)]


def test_the_second_item_may_end_before_the_first():
    second_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_done.wait(30)
        elif number == 1:
            second_done.set()
        return number

    assert list(in_order(work, range(4), 2)) == [0, 1, 2, 3]


def test_few_results_wait_however_slowly_they_are_taken():
    made: list[int] = []
    for taken, _ in enumerate(in_order(made.append, range(50), 3)):
        assert len(made) - taken <= 2 * 3
    assert len(made) == 50


def test_an_exception_reaches_the_caller_and_nothing_new_is_begun():
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(in_order(work, range(1000), 2))
    assert len(begun) < 10


def test_no_threads():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(in_order(str, range(3), 0))


def test_torch_gets_its_threads_back(own_thread_count):
    torch.set_num_threads(3)
    with one_thread_per_operation() as allowed:
        assert (allowed, torch.get_num_threads()) == (3, 1)
    assert torch.get_num_threads() == 3

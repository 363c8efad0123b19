"""The same work on many items by several threads, its results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """``work`` of each item, in the order of ``items``, ``threads`` of them at a time.

    At most ``2 * threads`` results exist that have not been taken: memory does not grow with the number of items. The
    first exception of ``work`` ends the iteration; what had not begun by then is not begun.

    Raises:
        ValueError: on fewer than one thread.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fcl-data")
    try:
        for item in items:
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread_per_operation() -> Iterator[int]:
    """Gives the number of threads that torch may use here, and lets each operation use one of them meanwhile.

    For work that is split over threads itself: else each of them would call for all of torch's. The number is what the
    site's ``threads``, the simulator's share of the cores or ``OMP_NUM_THREADS`` allow.
    """
    import torch  # what only reads files should not wait for it

    allowed = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield allowed
    finally:
        torch.set_num_threads(allowed)

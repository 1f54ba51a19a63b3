"""Work on many items with threads, stopped promptly when one fails or the user has had enough."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

from lswap_core.ports import Progress, Tally

_POLL_SECONDS = 0.005
Item = TypeVar("Item")
Result = TypeVar("Result")


class _StoppedError(Exception):
    """Raised in workers once another has failed; never leaves this module."""


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals back. One that interrupts `submit` can leave a lock of the pool taken, for which its threads would then
    wait for ever; threads begun meanwhile leave signals to the main one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_all(
    work: Callable[[Item, Tally], Result], items: Sequence[Item], *, total_bytes: int, progress: Progress, workers: int
) -> list[Result]:
    """`work(item, tally)` for every item; the results in the order of items.

    After an error or Ctrl-C no further item is begun, and those in flight end when they next call their tally.
    """
    stop = Event()
    finished: list[Item] = []
    failed: list[BaseException] = []

    def tally(done_bytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        progress.advance(done_bytes)

    def begin(item: Item) -> Result:
        if stop.is_set():
            raise _StoppedError
        try:
            result = work(item, tally)
        except BaseException as error:
            failed.append(error)
            raise
        finished.append(item)
        return result

    progress.begin(total_bytes)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lswap")
    try:
        with _undisturbed():
            futures = [pool.submit(begin, item) for item in items]
        # Not concurrent.futures.wait: a signal in it can leave the futures locked, and their threads waiting for ever.
        while len(finished) < len(items) and not failed:
            time.sleep(_POLL_SECONDS)
        if failed:
            raise failed[0]
        return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        progress.end()

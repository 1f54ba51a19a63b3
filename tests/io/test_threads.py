"""Work on many items: order, errors, interruption."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from lswap_core.io.ports import Tally
from lswap_core.io.threads import run_all
from tests.build import HANG_SECONDS


class Count:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.ended = 0

    def begin(self, total_bytes: int) -> None: ...

    def advance(self, done_bytes: int) -> None:
        self.done.append(done_bytes)

    def end(self) -> None:
        self.ended += 1


def test_results_come_in_the_order_of_items() -> None:
    progress = Count()

    def work(item: int, tally: Tally) -> int:
        time.sleep(0.001 * (item % 3))
        tally(item)
        return item * item

    assert run_all(work, range(50), total_bytes=0, progress=progress, workers=4) == [n * n for n in range(50)]
    assert sorted(progress.done) == list(range(50))
    assert progress.ended == 1


def test_an_error_stops_the_others_at_their_next_piece() -> None:
    progress, begun, gate = Count(), [], threading.Event()

    def work(item: int, tally: Tally) -> None:
        begun.append(item)
        if item == 3:
            gate.set()
            raise OSError("no more")
        gate.wait(HANG_SECONDS)
        while True:
            tally(1)
            time.sleep(0.001)

    with pytest.raises(OSError, match="no more"):
        run_all(work, range(1000), total_bytes=0, progress=progress, workers=4)
    assert len(begun) <= 8
    assert progress.ended == 1


def test_interruptions_do_not_hang() -> None:
    main = threading.main_thread().ident
    assert main is not None
    interrupted, before = 0, threading.active_count()
    for attempt in range(40):
        timer = threading.Timer(0.0005 * (attempt % 20), signal.pthread_kill, (main, signal.SIGINT))
        try:
            timer.start()
            run_all(lambda item, tally: time.sleep(0.001), range(400), total_bytes=0, progress=Count(), workers=3)
            time.sleep(HANG_SECONDS)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
    assert interrupted == 40
    assert threading.active_count() < before + 10  # others of this process may be a server's

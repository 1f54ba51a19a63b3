from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("seeded", derandomize=True, database=None, deadline=None)
settings.register_profile("long", print_blob=True, deadline=None)
settings.load_profile("long" if os.environ.get("LSWAP_LONG") else "seeded")  # the same examples on every machine


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """What a script starts in the background ignores interruptions, and so would all that is started from here."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

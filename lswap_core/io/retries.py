"""Retries of what a network interrupted: how often, and how long to wait between attempts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from lswap_core.errors import SourceError

FIRST_WAIT_SECONDS = 0.5
MOST_WAIT_SECONDS = 8.0
ATTEMPTS = 6
"""Attempts without a byte before a transfer fails: with the waits between them, about 20 seconds."""
LONGEST_PAUSE_SECONDS = 60.0
"""Longest wait in seconds that a server may ask for. For a longer one, the user must wait."""
Answer = TypeVar("Answer")


class InterruptedTransferError(Exception):
    """A transfer was interrupted, or refused for now. Another attempt may succeed, after `after_seconds` if the server said
    so.
    """

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


def pause(failures: int, error: InterruptedTransferError, path: str) -> None:
    """Wait before the next attempt. Raises SourceError where there were enough, or the wait would be too long."""
    if failures >= ATTEMPTS:
        raise SourceError(f"{path}: {error}, {failures} times in a row; try again later, what is done is kept") from None
    backoff = min(FIRST_WAIT_SECONDS * 2 ** (failures - 1), MOST_WAIT_SECONDS) * random.uniform(0.5, 1)
    if error.after_seconds is None:
        time.sleep(backoff)
    elif error.after_seconds > LONGEST_PAUSE_SECONDS:
        raise SourceError(f"{path}: {error}; the server asks to wait {error.after_seconds:.0f} s, try again then") from None
    else:
        time.sleep(error.after_seconds)


def persist(path: str, ask: Callable[[], Answer]) -> Answer:
    """Call `ask`, again as often while it raises InterruptedTransferError."""
    failures = 0
    while True:
        try:
            return ask()
        except InterruptedTransferError as error:
            failures += 1
            pause(failures, error, path)

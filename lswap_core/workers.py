"""How many threads work at a time."""

from __future__ import annotations

import os

from lswap_core.checkpoint import Checkpoint
from lswap_core.errors import RecipeError

REMOTE_WORKERS = 16


def default_workers(*, remote: bool = False) -> int:
    """Threads that a merge uses by default: the processors this process may run on, at most 8. remote: bytes come over a
    network, which threads spend their time waiting for.
    """
    return REMOTE_WORKERS if remote else min(8, len(os.sched_getaffinity(0)))


def threads_for(workers: int | None, *, remote: bool = False) -> int:
    """The number of threads asked for, or the usual one. RecipeError for less than one."""
    if workers is not None and workers < 1:
        raise RecipeError(f"--workers is {workers}; expected 1 or more")
    return workers or default_workers(remote=remote)


def are_remote(*checkpoints: Checkpoint | None) -> bool:
    """Some of them do not lie on a local or mounted disk."""
    return any(checkpoint is not None and "://" in checkpoint.root for checkpoint in checkpoints)

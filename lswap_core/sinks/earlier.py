"""What an earlier run left of an output, and how much of it holds."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from lswap_core.digests import RunDigests
from lswap_core.errors import RecipeError
from lswap_core.manifest import Manifest, StepRecord
from lswap_core.options import DigestKind
from lswap_core.plan import MANIFEST_FILE, OutputFile, Plan
from lswap_core.sinks.journal import Progress, read_journal
from lswap_core.sinks.partial import JOURNAL_FILE

_PIECE_BYTES = 1024 * 1024
_ANY_DIGEST = ""


def find_earlier(partial: Path, plan: Plan, digest: DigestKind) -> Progress | None:
    """What was done of this plan in a partial directory; None for nothing. RecipeError where it is another plan's."""
    found = read_journal(partial / JOURNAL_FILE) or _sealed(partial / MANIFEST_FILE)
    if found is None or not (found.durable or found.unsure):
        return None
    if found.plan != plan.digest or found.digest not in (_ANY_DIGEST, digest):
        what = "of another plan" if found.plan != plan.digest else f"begun with --digest {found.digest}"
        raise RecipeError(f"{partial} holds an unfinished merge {what}; finish that first, or discard it with --restart")
    return found


def is_intact(partial: Path, file: OutputFile) -> bool:
    """The output file is there, with its size and its header."""
    head = file.header.encode()
    try:
        with open(partial / file.name, "rb") as handle:
            return os.fstat(handle.fileno()).st_size == file.header.file_size and handle.read(len(head)) == head
    except FileNotFoundError:  # removed, since it could not be synced
        return False


def finished(partial: Path, plan: Plan, earlier: Progress, intact: Collection[str]) -> dict[str, StepRecord]:
    """Records of steps in intact files that hold: those that are durable, and of the others those whose bytes still have
    the recorded digest.
    """
    holds = {}
    for step in plan.steps:
        if step.file not in intact:
            continue
        if (record := earlier.durable.get(step.name)) is not None:
            holds[step.name] = record
        elif (record := earlier.unsure.get(step.name)) is not None and record.digest is not None:
            digests = RunDigests((step,))
            with open(partial / step.file, "rb", buffering=0) as handle:
                for at in range(step.begin, step.end, _PIECE_BYTES):
                    digests.feed(at, memoryview(os.pread(handle.fileno(), min(_PIECE_BYTES, step.end - at), at)))
            if digests.records()[0].digest == record.digest:
                holds[step.name] = record
    return holds


def _sealed(path: Path) -> Progress | None:
    """What the manifest tells of a run that was cut off just before its last act, the rename."""
    if not path.exists():
        return None
    manifest = Manifest.from_json(path.read_bytes(), path=str(path))
    records = {name: StepRecord(name, r.digest, r.statistics) for name, r in manifest.tensors.items()}
    return Progress(manifest.plan_digest, _ANY_DIGEST, {shard.name: "write" for shard in manifest.shards}, records, {})

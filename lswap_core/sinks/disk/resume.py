"""Determines what an earlier run left of an output, and how much of it is valid."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from lswap_core.errors import FormatError, RecipeError, located
from lswap_core.io.digests import RunDigests
from lswap_core.options import DigestKind
from lswap_core.plan.manifest import Manifest, StepRecord
from lswap_core.plan.plan import MANIFEST_FILE, OutputFile, Plan, Step
from lswap_core.sinks.disk.journal import JournalContents, read_journal
from lswap_core.sinks.disk.new_files import LINKED, WRITTEN
from lswap_core.sinks.disk.partial_directory import JOURNAL_FILE

_PIECE_BYTES = 1024 * 1024
_ANY_DIGEST = ""


def find_earlier(partial: Path, plan: Plan, digest: DigestKind) -> JournalContents | None:
    """What was done of this plan in a partial directory, None for nothing. Raises RecipeError for work on another plan."""
    # A manifest beside a journal, even a damaged one, proves nothing: it may be older than the last sync.
    journal = partial / JOURNAL_FILE
    earlier = read_journal(journal) if os.path.lexists(journal) else _sealed(partial / MANIFEST_FILE)
    if earlier is None or not (earlier.durable or earlier.unsure):
        return None
    if earlier.plan != plan.digest or earlier.digest not in (_ANY_DIGEST, digest):
        what = "of another plan" if earlier.plan != plan.digest else f"begun with --digest {earlier.digest}"
        raise RecipeError(f"{partial} holds an unfinished merge {what}; finish that first, or discard it with --restart")
    return earlier


def is_intact(partial: Path, file: OutputFile, placed: str | None) -> bool:
    """Whether the output file exists with its size and its header. placed: how the journal says that it was created.

    A file with a second name is not intact, unless it was linked on purpose: writing to it would change the other name's
    file.
    """
    head, path = file.header.encode(), partial / file.name
    try:
        status = path.lstat()
    except FileNotFoundError:  # removed, since it could not be synced
        return False
    if placed is None or not stat.S_ISREG(status.st_mode) or (status.st_nlink > 1 and placed != LINKED):
        return False
    with located(path), open(path, "rb") as handle:
        return status.st_size == file.header.file_size and handle.read(len(head)) == head


def finished(partial: Path, plan: Plan, earlier: JournalContents, intact: Collection[str]) -> dict[str, StepRecord]:
    """Valid records of steps in intact files: those that are durable, and others if the bytes still have the recorded digest.

    Records that were made together are valid together or not at all: a run that is done in sections may take other digests
    than the whole run, since it may share other extents.
    """
    steps = {step.name: step for step in plan.steps if step.file in intact}
    holds = {name: record for name, record in earlier.durable.items() if name in steps}
    for records in earlier.unsure:
        if all(record.name in steps and _holds(partial, steps[record.name], record) for record in records):
            holds |= {record.name: record for record in records}
    return holds


def _holds(partial: Path, step: Step, record: StepRecord) -> bool:
    """Whether the bytes have the recorded digest."""
    if record.digest is None:
        return False
    digests = RunDigests((step,))
    with located(partial / step.file), open(partial / step.file, "rb", buffering=0) as handle:
        for at in range(step.begin, step.end, _PIECE_BYTES):
            digests.feed(at, memoryview(os.pread(handle.fileno(), min(_PIECE_BYTES, step.end - at), at)))
    return digests.records()[0].digest == record.digest


def _sealed(path: Path) -> JournalContents | None:
    """The records in the manifest of a run that was interrupted just before its last act, the rename."""
    try:
        manifest = Manifest.from_json(path.read_bytes(), path=str(path))
    except (FileNotFoundError, FormatError):  # a damaged one counts as missing
        return None
    records = {name: StepRecord(name, r.digest, r.statistics) for name, r in manifest.tensors.items()}
    return JournalContents(manifest.plan_digest, _ANY_DIGEST, {shard.name: WRITTEN for shard in manifest.shards}, records, ())

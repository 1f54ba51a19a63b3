"""The journal of an output under construction. It records what is finished, so that an interrupted run can be resumed.

One line per event: the XXH3 of the rest of the line, in hexadecimal, and a JSON object. Of a journal that was cut off or
damaged, everything before the first invalid line counts.

    {"journal": "lswap-journal/1", "plan": DIGEST, "digest": KIND}   the plan and the kind of digests
    {"placed": {FILE: "clone", ...}}      the files exist durably with their headers, and how they were created
    {"done": [[STEP, DIGEST, STATISTICS], ...]}      the bytes of these steps were written
    {"synced": N}      the first N events of that kind are durable
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash

from lswap_core.errors import FormatError, located
from lswap_core.plan.manifest import StepRecord, record_from_json, record_to_json
from lswap_core.sinks.disk.durable import sync_directory, write_all
from lswap_core.text.strict_json import Node, parse_object

FORMAT = "lswap-journal/1"

_SUM_DIGITS = 16


@dataclass(frozen=True, slots=True)
class JournalContents:
    """The content of a journal: the plan, how files were created, which records are durable and which may not be. The latter
    are grouped as they were made.
    """

    plan: str
    digest: str
    placed: Mapping[str, str]
    durable: Mapping[str, StepRecord]
    unsure: tuple[tuple[StepRecord, ...], ...]


class Journal:
    """A journal to write to. Safe to use from several threads."""

    def __init__(self, path: Path, plan: str, digest: str) -> None:
        """Create nothing on disk before `start`."""
        self._path = path
        self._head = {"journal": FORMAT, "plan": plan, "digest": digest}
        self._lock = Lock()
        self._fd = -1
        self._events = 0

    def start(self, placed: Mapping[str, str], done: Sequence[StepRecord]) -> None:
        """Begin a new journal, which replaces an existing one and contains what is durable already."""
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.unlink(missing_ok=True)
        self.close()
        self._fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        events: list[dict[str, Any]] = [self._head, {"placed": dict(placed)}]
        events += [{"done": [record_to_json(record) for record in done]}, {"synced": 1}] if done else []
        self._events = len(done) and 1
        with located(self._path):
            write_all(self._fd, b"".join(map(_line, events)))
            os.fsync(self._fd)
        fresh.rename(self._path)
        sync_directory(self._path.parent)

    def record(self, done: Sequence[StepRecord]) -> int:
        """Record that steps were written. Returns the number of such events."""
        line = _line({"done": [record_to_json(record) for record in done]})
        with self._lock, located(self._path):
            write_all(self._fd, line)
            self._events += 1
            return self._events

    def synced(self, events: int) -> None:
        """Record that the first `events` events of `record` are durable."""
        with self._lock, located(self._path):
            write_all(self._fd, _line({"synced": events}))
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_journal(path: Path) -> JournalContents | None:
    """Read the journal at `path`. None where it does not exist, or ends before the placing of files."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    head: tuple[str, str] | None = None
    placed: dict[str, str] | None = None
    done: list[list[StepRecord]] = []
    synced = 0
    try:
        for line in lines:
            event = _parse(line, path)
            if "journal" in event and event["journal"].text() == FORMAT:
                head = event["plan"].text(), event["digest"].text()
            elif "placed" in event:
                placed = {file: how.text() for file, how in event["placed"].items()}
            elif "done" in event:
                done.append([record_from_json(entry) for entry in event["done"].elements()])
            else:
                synced = event["synced"].integer(high=len(done))
    except FormatError:
        pass  # the line that was being written when the run was interrupted, or damage from a power cut
    if head is None or placed is None:
        return None
    durable = {record.name: record for records in done[:synced] for record in records}
    unsure = tuple(map(tuple, done[synced:]))
    return JournalContents(*head, placed, durable, unsure)


def _line(event: Mapping[str, Any]) -> bytes:
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def _parse(line: bytes, path: Path) -> Node:
    written, text = line[:_SUM_DIGITS], line[_SUM_DIGITS + 1 :]
    if xxhash.xxh3_64_hexdigest(text).encode() != written:
        raise FormatError("a line is not what was written", path=str(path))
    return Node(parse_object(text, path=str(path)), path=str(path))

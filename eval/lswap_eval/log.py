"""The log of a model's answers. A crash loses at most the current batch.

A log is a file of JSON lines, which is appended to and never rewritten. The first line is a header: the model, the settings
and the problems. Every other line is one record, the raw output of one generation. A line counts once its newline is written.
What follows the last newline comes from an interrupted write and is no part of the log.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lswap_core.errors import FormatError, RecipeError
from lswap_core.text.strict_json import Node, parse_object

FORMAT = "lswap-eval-log/1"
Key = tuple[str, int, int]
"""(language, problem, sample): a log holds at most one record with this key."""
_MEMBERS = {"language", "problem", "sample", "prompt_sha256", "output", "finish_reason", "prompt_tokens", "completion_tokens"}


@dataclass(frozen=True, slots=True)
class Header:
    """What all records of a log have in common.

    `model["identity"]` (hex) identifies the weights; other members describe them. `settings` is everything else that an
    output depends on. `data_sha256` is the digest of the problems. `golds`, language -> right answers by problem number, lets
    the log be scored without the data. All of it is JSON.
    """

    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    data_sha256: str
    golds: Mapping[str, Sequence[int]] | None = None

    @property
    def identity(self) -> str:
        """Identity of the weights, as hex."""
        return str(self.model["identity"])

    def to_json(self) -> dict[str, Any]:
        """Return the header as written: tuples become lists, and so on."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model,
            "settings": self.settings,
            "data_sha256": self.data_sha256,
        }
        if self.golds is not None:
            value["golds"] = self.golds
        plain: dict[str, Any] = json.loads(json.dumps(value))
        return plain


@dataclass(frozen=True, slots=True)
class Record:
    """One generation. problem: counts from 0. finish_reason: "stop", "length", or another reason of the generator."""

    language: str
    problem: int
    sample: int
    prompt_sha256: str
    output: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def key(self) -> Key:
        """A log holds at most one record with this key."""
        return self.language, self.problem, self.sample


class Log:
    """A log that is open for appending, and locked: no two processes append to one."""

    def __init__(self, path: Path, fd: int, size: int, done: set[Key]) -> None:
        self.path = path
        self._fd = fd
        self._size = size
        self._done = done

    @classmethod
    def open(cls, path: str | os.PathLike[str], header: Header, *, resume: bool = False) -> Log:
        """Open a new log, which must not exist yet. With `resume`, also open an existing one.

        Resuming removes an incomplete last line. Raises RecipeError where the file exists and `resume` is false; where it is
        of another model, other settings or other problems; and where another process is writing it. Raises FormatError where
        it is no log.
        """
        path = Path(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | (0 if resume else os.O_EXCL), 0o666)
        except FileExistsError:
            raise RecipeError(f"{path} is there already; continue it with --resume, or choose another name") from None
        try:
            return cls._start(path, fd, header)
        except BaseException:  # whatever it was, the descriptor and its lock must not stay
            os.close(fd)
            raise

    @classmethod
    def _start(cls, path: Path, fd: int, header: Header) -> Log:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"{path} is being written by another process; wait for it or choose another name") from None
        first = _line(header.to_json())
        raw = path.read_bytes()
        if first.startswith(raw) and len(raw) < len(first):  # new, or cut off within the first line
            os.ftruncate(fd, 0)
            log = cls(path, fd, 0, set())
            log._write(first)
            _sync_directory(path.parent)
            return log
        kept, records = _parse(raw, str(path))
        _refuse_other(header, kept, path)
        size = raw.rindex(b"\n") + 1
        os.ftruncate(fd, size)
        return cls(path, fd, size, {record.key for record in records})

    @property
    def done(self) -> set[Key]:
        """Keys of the records in the log."""
        return set(self._done)

    def append(self, records: Iterable[Record]) -> None:
        """Write whole lines and sync them. A failed write leaves the log unchanged. Raises ValueError where a record exists
        already.

        Halves of surrogate pairs, which are no Unicode text, are written as U+FFFD.
        """
        batch = list(records)
        fresh = {record.key for record in batch}
        if len(fresh) != len(batch) or fresh & self._done:
            raise ValueError(f"{self.path}: a record would be there twice, of {sorted(fresh & self._done)[:3] or 'one batch'}")
        self._write(b"".join(_line(asdict(record)) for record in batch))
        self._done |= fresh

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            error.filename = str(self.path)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_log(path: str | os.PathLike[str]) -> tuple[Header, list[Record]]:
    """Read header and records, in the order written. An incomplete last line, of a log still being written, is left out.

    Raises FormatError, which names the line, for anything but a log and for a repeated record; and OSError.
    """
    return _parse(Path(path).read_bytes(), os.fspath(path))


def _parse(raw: bytes, path: str) -> tuple[Header, list[Record]]:
    lines = raw.split(b"\n")[:-1]  # split at newlines alone: texts may hold other characters that splitlines() splits at
    if not lines:
        raise FormatError("not a log of lswap_eval: it has no complete first line", path=path)
    header = _parse_header(_node(lines[0], path, 1))
    records: list[Record] = []
    seen: dict[Key, int] = {}
    for number, line in enumerate(lines[1:], 2):
        record = _parse_record(_node(line, path, number))
        if record.key in seen:
            raise FormatError(
                f"line {number} has language {record.language!r}, problem {record.problem}, sample {record.sample} again, "
                f"which line {seen[record.key]} has; a log holds each once",
                path=path,
            )
        seen[record.key] = number
        records.append(record)
    return header, records


def _node(line: bytes, path: str, number: int) -> Node:
    where = f"{path}: line {number}"
    return Node(parse_object(line, path=where), path=where)


def _parse_header(node: Node) -> Header:
    if "format" not in node or node["format"].value != FORMAT:
        raise node.refuse(f"not a log of lswap_eval: expected a first line with the format {FORMAT!r}")
    node["model"]["identity"].line()
    golds = None
    if "golds" in node:
        golds = {language: [gold.integer() for gold in items.elements()] for language, items in node["golds"].items()}
    settings = {name: item.value for name, item in node["settings"].items()}
    return Header(node["model"].value, settings, node["data_sha256"].line(), golds)


def _parse_record(node: Node) -> Record:
    if unknown := {name for name, _ in node.items()} - _MEMBERS:
        raise node.refuse(f"{min(unknown)!r} is no member of a record")
    counts = {
        name: None if node[name].optional() is None else node[name].integer() for name in ("prompt_tokens", "completion_tokens")
    }
    return Record(
        language=node["language"].line(),
        problem=node["problem"].integer(),
        sample=node["sample"].integer(),
        prompt_sha256=node["prompt_sha256"].line(),
        output=node["output"].text(),
        finish_reason=node["finish_reason"].line(),
        **counts,
    )


def _refuse_other(wanted: Header, kept: Header, path: Path) -> None:
    """Raises RecipeError unless a log with the header `kept` may be continued with the header `wanted`."""
    if wanted.identity != kept.identity:
        named = [f"{h.model['name']!r} ({h.identity[:12]})" if "name" in h.model else h.identity[:12] for h in (kept, wanted)]
        raise RecipeError(f"{path} is the log of another model, {named[0]}, not of {named[1]}; choose another name")
    if wanted.data_sha256 != kept.data_sha256:
        raise RecipeError(
            f"{path} is of other problems (data {kept.data_sha256[:12]}, now {wanted.data_sha256[:12]}); choose another name"
        )
    here, there = wanted.to_json()["settings"], kept.to_json()["settings"]
    changed = [
        f"{name} {there.get(name)!r:.60} there, {here.get(name)!r:.60} now"
        for name in dict.fromkeys((*there, *here))
        if there.get(name) != here.get(name) or (name in there) != (name in here)
    ]
    if changed:
        raise RecipeError(f"{path} is of other settings: {'; '.join(changed)}; use the same, or choose another name")


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    whole = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text) if not text.isascii() else text
    return whole.encode() + b"\n"


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

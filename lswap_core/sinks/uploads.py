"""What a run keeps in the store while it writes there, so that the next one can go on: uploads, their parts, finished steps.

One JSON object, `.lswap-partial/state.json` below the output's prefix; a store replaces an object whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lswap_core.plan.json_form import check_format
from lswap_core.plan.manifest import StepRecord, parse_statistics
from lswap_core.strict_json import Node, parse_object

FORMAT = "lswap-upload/1"
FOLDER = ".lswap-partial/"
STATE_FILE = FOLDER + "state.json"


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way. parts: begin, end and ETag by number, of those whose steps were all found to be sound."""

    id: str
    parts: Mapping[int, tuple[int, int, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """plan, digest: what is written, and with which digests. uploads: by file. steps: what is finished, by name; all of its
    bytes lie in parts that are listed. publishing: everything was sent; files may be visible by now.
    """

    plan: str
    digest: str
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    steps: Mapping[str, StepRecord] = field(default_factory=dict)
    publishing: bool = False

    def to_json(self) -> bytes:
        """The state as JSON."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "plan": self.plan,
            "digest": self.digest,
            "publishing": self.publishing,
            "uploads": {
                file: {"id": upload.id, "parts": [[number, *part] for number, part in upload.parts.items()]}
                for file, upload in self.uploads.items()
            },
            "steps": {
                name: [record.digest, None if record.statistics is None else record.statistics.to_json()]
                for name, record in self.steps.items()
            },
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes, *, path: str) -> State:
        """The inverse of `to_json`; FormatError names `path` for anything else."""
        document = Node(parse_object(text, path=path), path=path)
        check_format(document, FORMAT)
        return cls(
            document["plan"].text(),
            document["digest"].text(),
            {file: _upload(entry) for file, entry in document["uploads"].items()},
            {name: _record(name, entry) for name, entry in document["steps"].items()},
            document["publishing"].boolean(),
        )


def _upload(entry: Node) -> Upload:
    parts = (part.elements(4) for part in entry["parts"].elements())
    return Upload(entry["id"].text(), {n.integer(): (b.integer(), e.integer(), etag.text()) for n, b, e, etag in parts})


def _record(name: str, entry: Node) -> StepRecord:
    digest, statistics = entry.elements(2)
    return StepRecord(
        name,
        None if digest.value is None else digest.text(),
        None if statistics.value is None else parse_statistics(statistics),
    )

"""What a run keeps in the store while it writes there, so that the next one can go on: uploads, their parts, finished steps.

One JSON object, `.lswap-partial/state.json` below the output's prefix; a store replaces an object whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lswap_core.checkpoint.catalogue import Role
from lswap_core.plan.json_form import check_format, read_role
from lswap_core.plan.manifest import StepRecord, parse_statistics
from lswap_core.plan.plan import Plan
from lswap_core.sinks.part_records import Terms, decode, encode
from lswap_core.sinks.s3.division import Allotment, allot
from lswap_core.sinks.s3.multipart import stretch_file
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


SHARED_FORMAT = "lswap-upload-parts/1"

SourceFile = tuple[Role, str]


@dataclass(frozen=True, slots=True)
class Joint:
    """terms, copy_method: as the first worker was given them. origins: URL and ETag of the source files that the store copies
    from. alike: by output file, the source file that begins with its header. uploads: ids by output file.
    """

    terms: Terms
    copy_method: str
    origins: Mapping[SourceFile, tuple[str, str]] = field(default_factory=dict)
    alike: Mapping[str, SourceFile] = field(default_factory=dict)
    uploads: Mapping[str, str] = field(default_factory=dict)

    def allot(self, plan: Plan) -> Allotment:
        """The parts of the output, and who sends which. With `--copy-method read_write` a worker has whole files, since who asks
        for that may have a store that wants parts of one size.
        """
        stretches = {file.name: stretch_file(file, self.origins.keys(), self.alike.get(file.name)) for file in plan.files}
        return allot(plan, stretches, self.terms.parts, whole=self.copy_method == "read_write")

    def to_json(self) -> bytes:
        """It as JSON, with a sum."""
        return encode(
            {
                "format": SHARED_FORMAT,
                **asdict(self.terms),
                "copy_method": self.copy_method,
                "origins": [[*file, *where] for file, where in self.origins.items()],
                "alike": {file: [*theirs] for file, theirs in self.alike.items()},
                "uploads": dict(self.uploads),
            }
        )

    @classmethod
    def from_json(cls, raw: bytes, *, path: str) -> Joint:
        """The inverse of `to_json`; FormatError names `path` for anything else."""
        document = decode(raw, SHARED_FORMAT, path)
        origins = [entry.elements(4) for entry in document["origins"].elements()]
        alike = {file: entry.elements(2) for file, entry in document["alike"].items()}
        return cls(
            Terms.of(document),
            document["copy_method"].text(),
            {(read_role(role), file.file_name()): (url.text(), etag.text()) for role, file, url, etag in origins},
            {file: (read_role(role), theirs.file_name()) for file, (role, theirs) in alike.items()},
            {file: upload.text() for file, upload in document["uploads"].items()},
        )

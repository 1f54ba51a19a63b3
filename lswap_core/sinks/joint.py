"""What the workers of one output in a store agree on: written once, by the first of them, where one process keeps its state.

Whoever reads it knows the parts of every file and which of them are whose, without asking the store or the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from lswap_core.checkpoint.catalogue import Role
from lswap_core.plan.json_form import read_role
from lswap_core.plan.plan import Plan
from lswap_core.sinks.allotment import Allotment, allot
from lswap_core.sinks.parting import stretch_file
from lswap_core.sinks.records import Terms, decode, encode

FORMAT = "lswap-upload-parts/1"
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
                "format": FORMAT,
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
        document = decode(raw, FORMAT, path)
        origins = [entry.elements(4) for entry in document["origins"].elements()]
        alike = {file: entry.elements(2) for file, entry in document["alike"].items()}
        return cls(
            Terms.of(document),
            document["copy_method"].text(),
            {(read_role(role), file.file_name()): (url.text(), etag.text()) for role, file, url, etag in origins},
            {file: (read_role(role), theirs.file_name()) for file, (role, theirs) in alike.items()},
            {file: upload.text() for file, upload in document["uploads"].items()},
        )

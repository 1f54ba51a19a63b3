"""The state that all processes share that write one output to a store: one JSON object, `.lswap-partial/state.json` below the
output's prefix.

A store replaces an object whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from lswap_core.checkpoint.catalogue import Role
from lswap_core.plan.json_form import read_role
from lswap_core.plan.plan import Plan
from lswap_core.plan.upload_division import Division, divide_uploads
from lswap_core.plan.upload_parts import stretch_file
from lswap_core.sinks.part_records import Terms, decode, encode
from lswap_core.sinks.s3.copy_sources import CopySources

FORMAT = "lswap-upload-parts/1"
FOLDER = ".lswap-partial/"
STATE_FILE = FOLDER + "state.json"


@dataclass(frozen=True, slots=True)
class SharedState:
    """terms, copy_method: those of the first worker. origins: URL and ETag of the source files that the store copies from.
    alike: by output file, the source file that begins with its header. uploads: ids by output file.
    """

    terms: Terms
    copy_method: str
    origins: CopySources = field(default_factory=dict)
    alike: Mapping[str, tuple[Role, str]] = field(default_factory=dict)
    uploads: Mapping[str, str] = field(default_factory=dict)

    def divide(self, plan: Plan) -> Division:
        """Divide the output into upload parts, and these among the workers. With `--copy-method read_write` a worker gets
        whole files, since the store may want upload parts of one size.
        """
        stretches = {file.name: stretch_file(file, self.origins.keys(), self.alike.get(file.name)) for file in plan.files}
        return divide_uploads(plan, stretches, self.terms.parts, whole=self.copy_method == "read_write")

    def to_json(self) -> bytes:
        """Return the state as JSON, with a checksum."""
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
    def from_json(cls, raw: bytes, *, path: str) -> SharedState:
        """The inverse of `to_json`. Raises FormatError, which names `path`, for anything else."""
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

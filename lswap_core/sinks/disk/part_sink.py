"""Writes a part of an output as one of several workers that share a directory; and publishes all parts together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from threading import Lock

from lswap_core.errors import RecipeError, located
from lswap_core.io.ports import Source, Tally
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.division import Part, divide
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import OutputFile, Plan
from lswap_core.plan.runs import Run
from lswap_core.sinks.disk.build_directory import Build
from lswap_core.sinks.disk.durable import publish, sync, sync_directory, sync_name, write_all
from lswap_core.sinks.disk.new_files import WRITTEN, check_space, try_copying
from lswap_core.sinks.disk.partial_directory import check_destination
from lswap_core.sinks.disk.resume import is_intact
from lswap_core.sinks.disk.writing import Mover
from lswap_core.sinks.part_records import Terms, covers, gather


class DiskPartSink:
    """Writes the steps of one part at their final places. Workers need not know of each other. Two workers may do the same
    part: they write the same bytes.

    Where no extents are shared, the records equal those of `DiskSink`, for any number of parts. Where extents are shared,
    `--digest auto` takes no digest of a tensor with bytes in shared blocks. `DiskSink` can clone a whole file and so shares
    more of them, and the blocks that can be shared at the ends of runs depend on the number of parts. Digests of every other
    kind, and the files, are always the same.
    """

    in_order = False
    """See `lswap_core.io.ports.Writer`."""
    most_workers: int | None = None
    """See `lswap_core.io.ports.Writer`."""

    def __init__(
        self,
        destination: str | os.PathLike[str],
        plan: Plan,
        part: Part,
        *,
        sources: Iterable[str] = (),
        options: WriteOptions = WriteOptions(),
        traffic: Traffic | None = None,
        restart: bool = False,
    ) -> None:
        """Create the build directory or join it. restart: forget that this part is done.

        Raises RecipeError where the destination is impossible; where the build has another plan, number of parts or kind of
        digests; and for `link`, since many workers cannot write a linked shard.
        """
        if options.link != "none":
            raise RecipeError(f"--link {options.link} is not to be had with --part: parts are written into shards of their own")
        self._build = Build(check_destination(destination, sources))
        self._part, self._terms = part, Terms(plan.digest, part.count, options.digest)
        self._build.join(self._terms)
        self._options = options
        self.steps = divide(plan, part.count)[part.number - 1]
        """The steps of this part."""
        self._mover = Mover(
            self._build.output, options, traffic or Traffic(), open_file=self._open, on_loss=lambda _: None
        )  # other parts write the same file, so it stays; this part fails, and is written again
        self._lock = Lock()
        self._left = Counter(step.file for step in self.steps)
        self._watched: dict[str, int] = {}
        if restart:
            self._build.forget(part)

    @property
    def is_done(self) -> bool:
        """Whether any worker has done the part."""
        records = self._build.records(self._part, self._terms)
        return records is not None and covers(records, self.steps)

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """See `lswap_core.io.ports.Writer`. A part that was interrupted begins again."""
        try_copying(plan, source, self._build.scratch(), self._mover.copier, self._options.copy_method)
        check_space(self._build.path, self.steps, self._mover.copier)
        for file in plan.files:
            # A file without tensors belongs to no part; the first part creates it.
            if file.name in self._left or (self._part.number == 1 and not file.made_of):
                self._make(file)
        return {}

    def copy(self, run: Run, source: Source, tally: Tally) -> list[StepRecord]:
        """See `lswap_core.io.ports.Writer`."""
        return self._mover.copy(run, source, tally)

    def write(self, run: Run, offset: int, data: memoryview) -> None:
        """See `lswap_core.io.ports.Writer`."""
        self._mover.write(run, offset, data)

    def finish(self, run: Run, records: list[StepRecord]) -> None:  # noqa: ARG002
        """See `lswap_core.io.ports.Writer`. Syncs a file in which this part has nothing left to do."""
        with self._lock:
            self._left[run.file] -= len(run.steps)
            fd = self._watched.pop(run.file, None) if not self._left[run.file] else None
        if fd is not None:
            self._sync(run.file, fd)

    def seal(self, records: list[StepRecord]) -> None:
        """Record that the part is done, after making its bytes durable."""
        self._mover.close()
        while self._watched:
            self._sync(*self._watched.popitem())
        sync_directory(self._build.output)
        self._build.note(self._part, self._terms, records)

    def close(self) -> None:
        """Close all files."""
        self._mover.close()
        while self._watched:
            os.close(self._watched.popitem()[1])

    def _make(self, file: OutputFile) -> None:
        """Create the file with its header and its full length. Existing content stays, since other workers write the same
        file.
        """
        path = self._build.output / file.name
        fd = self._open_to_write(file.name, os.O_CREAT)
        try:
            with located(path):
                write_all(fd, file.header.encode(), 0)
                if os.fstat(fd).st_size != file.header.file_size:
                    os.ftruncate(fd, file.header.file_size)
                os.fsync(fd)
        finally:
            os.close(fd)

    def _open(self, name: str) -> int:
        """Return a descriptor for one thread.

        A second descriptor is for syncing. It is opened before the first write and stays open until this part is done with
        the file, so that fsync reports every page that the disk failed to write since.
        """
        with self._lock:
            if name not in self._watched:
                self._watched[name] = self._open_to_write(name)
        return self._open_to_write(name)

    def _open_to_write(self, name: str, flags: int = 0) -> int:
        # Write-only: where a network filesystem's client may read the file, it can fill up the page between two parts before
        # it writes to it. It then writes back the whole page, over the bytes of another machine.
        return os.open(self._build.output / name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)

    def _sync(self, name: str, fd: int) -> None:
        try:
            with located(self._build.output / name):
                os.fsync(fd)
        finally:
            os.close(fd)


class DiskParts:
    """The finished parts of an output, to be published."""

    def __init__(self, destination: str | os.PathLike[str], plan: Plan, *, sources: Iterable[str] = ()) -> None:
        """Raises RecipeError where the destination exists or is impossible, and where a part is missing or of another plan."""
        absolute = Path(os.path.abspath(destination))
        build = Build(Path(os.path.realpath(absolute.parent)) / absolute.name)
        if os.path.lexists(build.destination) and build.path.is_dir() and not build.output.exists():
            build.remove()  # left over where publishing was interrupted after its last act
        self._build = build = Build(check_destination(destination, sources))
        terms = build.terms() if build.path.is_dir() else None
        if terms is None:
            raise RecipeError(
                f"there are no parts of {build.destination}; make them first, as `lswap-core apply PLAN --part 1/1`"
            )
        if terms.plan != plan.digest:
            raise RecipeError(f"{build.path} holds the parts of another plan; give that plan, or choose another --out")
        self.digest = terms.digest
        """The kind of digests of the parts."""
        steps = divide(plan, terms.parts)
        self.records = gather(plan, steps, lambda part: build.records(part, terms), build.path)
        """Records of every step, in the plan's order."""
        if wrong := [file.name for file in plan.files if not is_intact(build.output, file, WRITTEN)]:
            what = f"{build.output / wrong[0]} is not what the parts made: its size or its header is another, or it is gone"
            raise RecipeError(f"{what}; remove {build.path} and do all parts again")
        self.shard_sha256: dict[str, str] = {}
        self._names = {file.name for file in plan.files}

    def hash_shard(self, name: str) -> None:
        """Take the SHA-256 of a whole shard."""
        with open(self._build.output / name, "rb", buffering=0) as file:
            self.shard_sha256[name] = file_digest(file, "sha256").hexdigest()

    def put(self, name: str, data: bytes) -> None:
        """Add a small file. Replaces a file that an earlier attempt left.

        Raises RecipeError where this attempt has put a file of that name already, or where a shard has it.
        """
        if name in self._names:
            raise RecipeError(f"{self._build.output / name}: two files of the output would have this name")
        self._names.add(name)
        folder = self._build.output
        for inner in Path(name).parent.parts:  # never `output` itself, which another process may have published
            folder /= inner
            folder.mkdir(exist_ok=True)
        self._build.put(self._build.output / name, data)

    def publish(self) -> None:
        """Make names and lengths durable, rename the output to its final name, and remove the rest.

        Raises RecipeError where that name has been taken.
        """
        build = self._build
        for folder, _, files in os.walk(build.output, topdown=False):
            for name in files:
                path = Path(folder, name)
                if path.relative_to(build.output).as_posix() in self._names:
                    sync(path)
                else:
                    path.unlink()
            sync_directory(Path(folder))
        publish(build.output, build.destination)
        sync_name(build.destination)
        sync_directory(build.path)
        build.remove()

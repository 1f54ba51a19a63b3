"""A part of an output, written by one of several workers into the directory that they share; and all parts put together."""

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
from lswap_core.sinks.disk.durable import sync, sync_directory, write_all
from lswap_core.sinks.disk.new_files import WRITTEN, check_space, try_copying
from lswap_core.sinks.disk.partial_directory import check_destination
from lswap_core.sinks.disk.resume import is_intact
from lswap_core.sinks.disk.writing import Mover
from lswap_core.sinks.part_records import Terms, covers, gather


class SharedSink:
    """Writes the steps of one part at their final places, among other workers, of whom none needs to know of another. Two on
    one part are harmless: they write the same bytes.

    Where no extents are shared, the records are those that `LocalSink` would have, for any number of parts. Where they are,
    `--digest auto` takes none of a tensor with bytes in shared blocks; `LocalSink`, which can begin with a clone of a whole
    file, shares more of them, and which blocks can be shared at the ends of runs hangs on the number of parts. Digests of
    every other kind are the same everywhere, and so are the files.
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
        """Make the build directory or join those who did. RecipeError where the destination is impossible, where parts of
        another plan, number or kind of digests are there, or for `link`: a linked shard cannot be written by many.
        restart: forget that this part is done.
        """
        if options.link != "none":
            raise RecipeError(f"--link {options.link} is not to be had with --part: parts are written into shards of their own")
        self._build = Build(check_destination(destination, sources))
        self._part, self._terms = part, Terms(plan.digest, part.count, options.digest)
        self._build.join(self._terms)
        self._options = options
        self.steps = divide(plan, part.count)[part.number - 1]
        """What this part is to do."""
        self._mover = Mover(
            self._build.output, options, traffic or Traffic(), open_file=self._open, on_loss=lambda _: None
        )  # a file of which pages were lost is the other parts' as well; this part fails, and is written anew
        self._lock = Lock()
        self._left = Counter(step.file for step in self.steps)
        self._watched: dict[str, int] = {}
        if restart:
            self._build.forget(part)

    @property
    def is_done(self) -> bool:
        """The part has been done, by whomever."""
        records = self._build.records(self._part, self._terms)
        return records is not None and covers(records, self.steps)

    def begin(self, plan: Plan, source: Source) -> Mapping[str, StepRecord]:
        """See `lswap_core.io.ports.Writer`: a part that was cut off is done from its beginning."""
        try_copying(plan, source, self._build.scratch(), self._mover.copier, self._options.copy_method)
        check_space(self._build.path, self.steps, self._mover.copier)
        for file in plan.files:
            # A file without tensors is nobody's; the first part makes it.
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
        """See `lswap_core.io.ports.Writer`. A file in which this part has nothing left to do is synced."""
        with self._lock:
            self._left[run.file] -= len(run.steps)
            fd = self._watched.pop(run.file, None) if not self._left[run.file] else None
        if fd is not None:
            self._sync(run.file, fd)

    def seal(self, records: list[StepRecord]) -> None:
        """Record that the part is done. What it wrote is durable by then."""
        self._mover.close()
        while self._watched:
            self._sync(*self._watched.popitem())
        sync_directory(self._build.output)
        self._build.note(self._part, self._terms, records)

    def close(self) -> None:
        """Close what is open."""
        self._mover.close()
        while self._watched:
            os.close(self._watched.popitem()[1])

    def _make(self, file: OutputFile) -> None:
        """The file with its header and its full length. Whatever it holds already stays: this is what others did, too."""
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
        """A descriptor for one thread. Another, opened before the first byte is written and held until this part is through
        with the file, is for syncing: it is told of every page that the disk failed to take since.
        """
        with self._lock:
            if name not in self._watched:
                self._watched[name] = self._open_to_write(name)
        return self._open_to_write(name)

    def _open_to_write(self, name: str, flags: int = 0) -> int:
        # For writing alone: a network filesystem's client that may read a file can fill up the page at the seam of two parts
        # before it writes to it, and then writes back the whole page, over what another machine has put there.
        return os.open(self._build.output / name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)

    def _sync(self, name: str, fd: int) -> None:
        try:
            with located(self._build.output / name):
                os.fsync(fd)
        finally:
            os.close(fd)


class Gathering:
    """The parts of an output, all of them done, on their way to its final name."""

    def __init__(self, destination: str | os.PathLike[str], plan: Plan, *, sources: Iterable[str] = ()) -> None:
        """RecipeError where the destination exists or is impossible, where a part is missing, or is one of another plan."""
        absolute = Path(os.path.abspath(destination))
        build = Build(Path(os.path.realpath(absolute.parent)) / absolute.name)
        if os.path.lexists(build.destination) and build.path.is_dir() and not build.output.exists():
            build.remove()  # what was left when publishing was cut off after its last act
        self._build = build = Build(check_destination(destination, sources))
        terms = build.terms() if build.path.is_dir() else None
        if terms is None:
            raise RecipeError(
                f"there are no parts of {build.destination}; make them first, as `lswap-core apply PLAN --part 1/1`"
            )
        if terms.plan != plan.digest:
            raise RecipeError(f"{build.path} holds the parts of another plan; give that plan, or choose another --out")
        self.digest = terms.digest
        """The kind of digests that the parts were made with."""
        steps = divide(plan, terms.parts)
        self.records = gather(plan, steps, lambda part: build.records(part, terms), build.path)
        """Of every step, in the plan's order."""
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
        """Add a small file. What an earlier attempt left under that name gives way. RecipeError where this one has put a file
        of that name already, or where a shard has it.
        """
        if name in self._names:
            raise RecipeError(f"{self._build.output / name}: two files of the output would have this name")
        self._names.add(name)
        folder = self._build.output
        for inner in Path(name).parent.parts:  # never `output` itself, which somebody else may have published by now
            folder /= inner
            folder.mkdir(exist_ok=True)
        self._build.put(self._build.output / name, data)

    def publish(self) -> None:
        """Make names and lengths durable, give the whole its final name, and clear the rest away, small files of an earlier
        attempt among it. RecipeError where that name is taken by now.
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
        if os.path.lexists(build.destination):
            raise RecipeError(f"{build.destination} exists; an output is never written over, choose another --out or remove it")
        build.output.rename(build.destination)
        try:
            sync_directory(build.destination.parent)
            sync_directory(build.path)
        except OSError as error:
            error.add_note(f"{build.destination} is complete, but a power cut may take its name from it")
            raise
        build.remove()

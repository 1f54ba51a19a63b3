"""The directory in which an output is built, `.<name>.partial` beside its final place: claimed, kept or cleared, published."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lswap_core.errors import RecipeError, located
from lswap_core.plan.plan import CLAIM_FILE, MANIFEST_FILE
from lswap_core.sinks.disk.durable import exists_already, publish, sync_directory, sync_file, sync_name
from lswap_core.text.strict_json import is_unicode

JOURNAL_FILE = ".lswap-journal"


def check_destination(destination: str | os.PathLike[str], sources: Iterable[str], option: str = "--out") -> Path:
    """Return the path of the output. option: the command line's option for it.

    Raises RecipeError where it exists, or is, contains or is inside one of `sources` (paths), and FileNotFoundError where its
    parent does not exist.
    """
    # Links are resolved up to the output's parent directory; the name itself must be free, links included.
    absolute = Path(os.path.abspath(destination))
    place = Path(os.path.realpath(absolute.parent)) / absolute.name
    if not is_unicode(str(place)):
        raise RecipeError(f"the output's path {str(place)!r} is no Unicode text; choose another {option}")
    for source in sources:
        real = Path(os.path.realpath(source))
        if place == real or place.is_relative_to(real) or real.is_relative_to(place):
            raise RecipeError(f"the output {place} is, contains or is inside the source {real}; choose another {option}")
    if os.path.lexists(place):
        raise exists_already(place, option)
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the output's parent directory does not exist", str(place.parent))
    return place


class Partial:
    """A claimed directory. A lock, which ends with its process, keeps other processes out."""

    def __init__(self, destination: Path) -> None:
        """Raises RecipeError where another process writes there, or where something else has the directory's name."""
        self.destination = destination
        self.path = destination.with_name(f".{destination.name}.partial")
        self.published = False
        """Whether it has its final name."""
        self._directory = self._claim()

    @property
    def holds_work(self) -> bool:
        """Whether an earlier run may have left finished work."""
        return any((self.path / name).exists() for name in (JOURNAL_FILE, MANIFEST_FILE))

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove everything but the claim and the names in `keep`. The records of finished work go first, and durably, so
        that they never seem to describe new files.
        """
        told = [self.path / name for name in (MANIFEST_FILE, JOURNAL_FILE) if name not in keep]
        if any(path.exists() for path in told):
            for path in told:
                path.unlink(missing_ok=True)
            sync_directory(self.path)
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != CLAIM_FILE and path.name not in keep:
                path.unlink()

    def publish(self) -> None:
        """Sync the files, then the directories, rename the directory to its final name, and sync the parent.

        Raises RecipeError where that name has been taken.
        """
        for folder, _, files in os.walk(self.path, topdown=False, onerror=_raise):
            for name in files:
                if name not in (JOURNAL_FILE, CLAIM_FILE):
                    sync_file(Path(folder, name))
            sync_directory(Path(folder))
        # From here on the manifest says that the output is complete, in case the rename fails.
        for name in (JOURNAL_FILE, CLAIM_FILE):
            (self.path / name).unlink()
        sync_directory(self.path)
        publish(self.path, self.destination)
        self.published = True
        sync_name(self.destination)

    def remove(self) -> None:
        """Remove the directory. The claim goes last, so that the rest after an interruption is still recognised."""
        (self.path / CLAIM_FILE).touch()
        self.clear()
        (self.path / CLAIM_FILE).unlink()
        self.path.rmdir()

    def release(self) -> None:
        """Release the lock."""
        os.close(self._directory)

    def _claim(self) -> int:
        self.path.mkdir(exist_ok=True)
        try:
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._abandon()
            raise
        try:
            self._mark(directory)
        except BaseException:  # Ctrl-C, too: a later call in this process must find no lock
            os.close(directory)
            raise
        return directory

    def _mark(self, directory: int) -> None:
        leftovers: set[str] | None = None
        try:
            with located(self.path):
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between mkdir and flock the process that held the directory may have published or abandoned it.
            if not os.path.samestat(os.fstat(directory), os.stat(self.path)):
                raise _taken(self.destination)
            leftovers = {path.name for path in self.path.iterdir()}
            if leftovers and not {CLAIM_FILE, JOURNAL_FILE, MANIFEST_FILE} & leftovers:
                raise RecipeError(f"{self.path} is in the way and not of this program's making; move it or choose another --out")
            (self.path / CLAIM_FILE).touch()
            sync_directory(self.path)  # on btrfs, a power cut may leave files that were synced later, but not the claim
        except (BlockingIOError, FileNotFoundError):
            raise _taken(self.destination) from None
        except OSError:
            if leftovers == set():
                (self.path / CLAIM_FILE).unlink(missing_ok=True)
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Remove the directory if it is empty: it may be new."""
        with suppress(OSError):
            self.path.rmdir()


def _taken(destination: Path) -> RecipeError:
    return RecipeError(f"{destination} is being written by another process; wait for it or choose another --out")


def _raise(error: OSError) -> NoReturn:
    raise error

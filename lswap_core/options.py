"""Options that are chosen by name, and `WriteOptions`: how an output is written. These change its speed and the recorded
digests, never its tensors.

The command line loads this module before it knows the command, so it imports little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lswap_core.errors import RecipeError

CopyMethod = Literal["auto", "clone", "copy_file_range", "sendfile", "read_write"]

DigestKind = Literal["auto", "none", "xxh3", "sha256"]

Link = Literal["none", "hard"]

Method = Literal["layer-swap", "soup", "task-arithmetic", "ties"]

Ramp = Literal["constant", "linear", "mav"]

OutsideChoice = Literal["math", "lang", "blend"]

ROLES = ("math", "lang", "base")
"""The roles of sources in layer swapping, task vectors and the analysis, in the order in which plans list them. Other sources
may have any other identifier as role.
"""

COPY_METHODS: tuple[CopyMethod, ...] = get_args(CopyMethod)

DIGESTS: tuple[DigestKind, ...] = get_args(DigestKind)

LINKS: tuple[Link, ...] = get_args(Link)

METHODS: tuple[Method, ...] = get_args(Method)

RAMPS: tuple[Ramp, ...] = get_args(Ramp)

OUTSIDE_CHOICES: tuple[OutsideChoice, ...] = get_args(OutsideChoice)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How an output is written. Raises RecipeError for unknown values.

    copy_method: the only way of copying to try before reading and writing; `auto` tries all, fastest first. digest: the bytes
    of which a digest is recorded. `auto`: XXH3 (128 bits) of every tensor that this process moved, none of one that shares
    its source's extents or file; `xxh3`: of every tensor; `sha256`: that, and the SHA-256 of every shard, as the hub shows
    it; `none`. link: `hard` links a shard in which nothing changed to its source's file.
    """

    copy_method: CopyMethod = "auto"
    digest: DigestKind = "auto"
    link: Link = "none"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {"copy_method": COPY_METHODS, "digest": DIGESTS, "link": LINKS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                flag = "--" + name.replace("_", "-")
                raise RecipeError(f"{flag} is {getattr(self, name)!r}; expected one of {', '.join(known)}")


def check_options(options: WriteOptions) -> None:
    """Raises RecipeError for options that only a disk supports, where the output is not on a disk."""
    if options.digest == "sha256":
        raise RecipeError("--digest sha256: nobody sees the bytes of a shard in order on their way to a store; use xxh3")
    if options.copy_method not in ("auto", "read_write"):
        raise RecipeError(f"--copy-method {options.copy_method} is for disks; a store knows auto and read_write")
    if options.link != "none":
        raise RecipeError(f"--link {options.link} is for disks; a store copies whole files itself")

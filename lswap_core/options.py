"""What can be chosen by name; and how an output is written, which changes its speed and what is recorded of it, never its
tensors. Light enough for the command line to load before it knows what is asked of it.
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

Part = Literal["math", "lang", "blend"]

ROLES = ("math", "lang", "base")
"""What layer swapping, task vectors and the analysis call their sources, in the order in which plans list them. A source's role
may be any other identifier.
"""

COPY_METHODS: tuple[CopyMethod, ...] = get_args(CopyMethod)

DIGESTS: tuple[DigestKind, ...] = get_args(DigestKind)

LINKS: tuple[Link, ...] = get_args(Link)

METHODS: tuple[Method, ...] = get_args(Method)

RAMPS: tuple[Ramp, ...] = get_args(Ramp)

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """copy_method: the only way of copying to try before reading and writing; `auto` tries all, best first.

    digest: of which bytes a digest is recorded. `auto`: XXH3 (128 bits) of every tensor that this process moved, none of one
    that shares its source's extents or file; `xxh3`: of every tensor; `sha256`: that, and the SHA-256 of every shard, as
    the hub shows it; `none`. link: `hard` links a shard in which nothing changed to its source's file.

    Raises RecipeError for any other value.
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
    """RecipeError for what only a disk can do."""
    if options.digest == "sha256":
        raise RecipeError("--digest sha256: nobody sees the bytes of a shard in order on their way to a store; use xxh3")
    if options.copy_method not in ("auto", "read_write"):
        raise RecipeError(f"--copy-method {options.copy_method} is for disks; a store knows auto and read_write")
    if options.link != "none":
        raise RecipeError(f"--link {options.link} is for disks; a store copies whole files itself")

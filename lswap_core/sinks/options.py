"""Which of the choices of how to write make sense for a store."""

from __future__ import annotations

from lswap_core.errors import RecipeError
from lswap_core.options import WriteOptions


def check_options(options: WriteOptions) -> None:
    """RecipeError for what only a disk can do."""
    if options.digest == "sha256":
        raise RecipeError("--digest sha256: nobody sees the bytes of a shard in order on their way to a store; use xxh3")
    if options.copy_method not in ("auto", "read_write"):
        raise RecipeError(f"--copy-method {options.copy_method} is for disks; a store knows auto and read_write")
    if options.link != "none":
        raise RecipeError(f"--link {options.link} is for disks; a store copies whole files itself")

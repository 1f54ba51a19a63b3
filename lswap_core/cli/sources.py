"""Reads the options that name sources: `--math`, `--lang`, `--base` and `--source ROLE=PATH`."""

from __future__ import annotations

import argparse

from lswap_core.errors import RecipeError
from lswap_core.options import ROLES


def named_sources(arguments: argparse.Namespace) -> dict[str, str]:
    """Every source that the options name, by role: those with an option of their own first, the others in the order given.

    Raises RecipeError for anything but ROLE=PATH, and for a role with two locations.
    """
    given = [(role, path) for role in ROLES if (path := getattr(arguments, role))]
    paths: dict[str, str] = {}
    for role, path in [*given, *map(_parse, arguments.source)]:
        if paths.setdefault(role, path) != path:
            raise RecipeError(f"{role} is given twice, as {paths[role]} and as {path}")
    return paths


def parse_weights(text: str) -> dict[str, float]:
    """Parse `math=2,code=1` as weights by role. Raises RecipeError for anything else."""
    from lswap_core.checkpoint.catalogue import parse_role

    by_role: dict[str, float] = {}
    for entry in text.split(","):
        role, _, weight = entry.partition("=")
        try:
            number = float(weight)
        except ValueError:
            raise RecipeError(f"--weights is {text!r}; expected ROLE=W,ROLE=W, such as math=2,code=1") from None
        if (named := parse_role(role.strip())) in by_role:
            raise RecipeError(f"--weights has two weights for {named}")
        by_role[named] = number
    return by_role


def _parse(text: str) -> tuple[str, str]:
    from lswap_core.checkpoint.catalogue import parse_role

    role, _, path = text.partition("=")
    if not path:
        raise RecipeError(f"--source is {text!r}; expected ROLE=PATH, such as code=models/code")
    return parse_role(role), path

"""The tree, its exit codes and its messages."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from lswap_core import errors


def test_the_tree_drawn_is_the_tree_there_is() -> None:
    drawn = dict(re.findall(r"(\w+Error) +exit (\d)", errors.__doc__ or ""))
    public = {
        name: c
        for name, c in inspect.getmembers(errors, inspect.isclass)
        if not name.startswith("_") and c.__module__ == errors.__name__
    }
    assert set(public) == {*re.findall(r"\w+Error", errors.__doc__ or "")} - {"OSError"}
    for name, cls in public.items():
        assert issubclass(cls, errors.LswapError)
        if name in drawn:
            assert cls.exit_code == int(drawn[name])
    assert errors.MismatchError.exit_code == errors.SelectionError.exit_code == errors.RecipeError.exit_code


def test_a_listing_shows_the_first_and_keeps_all() -> None:
    error = errors.MismatchError("no", [f"issue {n}" for n in range(20)])
    assert len(error.issues) == 20
    assert str(error).endswith("issue 11; and 8 more (--json lists them all)")
    assert str(errors.VerificationError("no", ["one"])) == "no: one"


@pytest.mark.parametrize(("tensor", "text"), [(None, "f: bad"), ("t\n", "f: tensor 't\\n': bad")])
def test_format_errors_say_where(tensor: str | None, text: str) -> None:
    assert str(errors.FormatError("bad", path="f", tensor=tensor)) == text


@pytest.mark.parametrize(
    "error",
    [
        errors.FormatError("bad", path="f", tensor="t"),
        errors.MismatchError("no", [f"issue {n}" for n in range(20)]),
        errors.VerificationError("no", ["one"]),
        errors.RecipeError("r"),
        errors.SelectionError("s"),
        errors.StalePlanError("p"),
        errors.SourceError("h"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_travels_between_processes_whole(error: errors.LswapError) -> None:
    error.add_note("a note")
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)
    assert there.__notes__ == ["a note"]

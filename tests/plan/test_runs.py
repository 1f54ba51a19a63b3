"""Runs and bases, as laws over plans of odd checkpoints; options and the count of bytes by method."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lswap_core.errors import RecipeError
from lswap_core.io.traffic import METHODS, Traffic
from lswap_core.options import COPY_METHODS, DIGESTS, LINKS, WriteOptions
from lswap_core.plan.layout import lay_out
from lswap_core.plan.plan import Step
from lswap_core.plan.runs import RUN_BYTES, base_of, is_plain, runs
from lswap_core.recipe.draft import Draft
from tests.catalogue import checkpoint
from tests.plan.test_shareable_layout import drafts

sizes = st.sampled_from([None, 1, 20_000, 10**6])


def fits(before: Step, step: Step) -> bool:
    """Written down again from the definition: copies that are neighbours here and there."""
    near, far = before.made_of.refs[0], step.made_of.refs[0]
    return (
        is_plain(before)
        and is_plain(step)
        and (before.file, before.end) == (step.file, step.begin)
        and (near.role, near.file, near.end) == (far.role, far.file, far.begin)
    )


@settings(deadline=None)
@given(drafts(), sizes, st.sampled_from([1, 5000, RUN_BYTES]), st.data())
def test_runs_are_all_steps_in_order_and_as_long_as_can_be(
    draft: Draft, shard_size: int | None, most: int, data: st.DataObject
) -> None:
    steps = lay_out(draft, shard_size).steps
    apart = data.draw(st.sets(st.sampled_from([step.name for step in steps])))
    found = list(runs(steps, apart=apart, most_bytes=most))
    assert tuple(step for run in found for step in run.steps) == steps
    for run in found:
        assert all(fits(a, b) and (a.name in apart) == (b.name in apart) for a, b in pairwise(run.steps))
        assert run.size_bytes <= most or len(run.steps) == 1
        assert (run.begin, run.end, run.file) == (run.steps[0].begin, run.steps[-1].end, run.steps[0].file)
        assert run.copied is is_plain(run.steps[0])
        assert run.source == run.steps[0].made_of.refs[0]
        assert run.size_bytes == sum(step.size_bytes for step in run.steps)
    for one, two in pairwise(found):
        step = two.steps[0]
        joined = fits(one.steps[-1], step) and (one.steps[-1].name in apart) == (step.name in apart)
        assert not joined or one.size_bytes + step.size_bytes > most


@settings(deadline=None)
@given(drafts(), sizes)
def test_the_base_is_the_source_file_with_most_bytes_in_place(draft: Draft, shard_size: int | None) -> None:
    for file in lay_out(draft, shard_size).files:
        candidates: dict[tuple[str, str], list[Step]] = {}
        for step in file.steps():
            ref = step.made_of.refs[0]
            if is_plain(step) and ref.begin == step.begin:
                candidates.setdefault((ref.role, ref.file), []).append(step)
        base = base_of(file)
        if base is None:
            assert not candidates
            continue
        weights = {key: sum(step.size_bytes for step in steps) for key, steps in candidates.items()}
        assert weights[base.role, base.file] == max(weights.values())
        assert list(base.shared) == candidates[base.role, base.file]
        assert base.whole is (len(base.shared) == len(file.made_of))


def test_an_unchanged_shard_is_wholly_its_source_s() -> None:
    shapes = {f"layers.{n}.w": ("BF16", (64,)) for n in range(4)}
    files = [[name] for name in shapes]
    primary = checkpoint(shapes, files=files)
    for file in lay_out(Draft.of(primary)).files:
        base = base_of(file)
        assert base is not None
        assert (base.role, base.file, base.whole) == ("math", file.name, True)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"copy_method": "teleport"}, "--copy-method is 'teleport'; expected one of auto, clone, copy_file_range, sendfile, read_write"),
        ({"digest": "md5"}, "--digest is 'md5'; expected one of auto, none, xxh3, sha256"),
        ({"link": True}, "--link is True; expected one of none, hard"),
    ],
)  # fmt: skip
def test_options_are_of_what_is_known(given_: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        WriteOptions(**given_)
    assert str(caught.value) == words


def test_every_known_option_is_one() -> None:
    for method in COPY_METHODS:
        for digest in DIGESTS:
            for link in LINKS:
                made = WriteOptions(method, digest, link)
                assert (made.copy_method, made.digest, made.link) == (method, digest, link)


def test_traffic_counts_whoever_tells_it_in_the_order_people_read() -> None:
    traffic = Traffic()
    assert traffic.bytes_by_method == {}

    def tell(method: str) -> None:
        for _ in range(1000):
            traffic.add(method, 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, ["compute", "clone", "read_write", "clone"] * 2))
    traffic.add("link", 0)
    assert list(traffic.bytes_by_method.items()) == [("clone", 12_000), ("read_write", 6000), ("compute", 6000)]
    assert set(COPY_METHODS) - {"auto"} < set(METHODS)

"""A run that ends too early leaves nothing, or what the same command takes to the same bytes; and nobody else's work suffers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lswap_core import RecipeError, StalePlanError
from lswap_core.plan.division import Part
from lswap_core.sinks.places import open_part, open_sink
from tests.build import llama_pair
from tests.sinks.conformance.cases import COPIED, Case, RunReport, fail_after, swap_case, write
from tests.sinks.conformance.conftest import Opener, on_every_server
from tests.sinks.conformance.places import Place

ERRORS: dict[str, Callable[[], BaseException]] = {
    "an error": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "an interruption": KeyboardInterrupt,
}


@on_every_server
@pytest.mark.parametrize(("share", "kind"), [(0.0, "an error"), (0.4, "an interruption"), (0.8, "an error")])
def test_a_source_that_fails_costs_nothing_but_time(place: Place, cases: dict[str, Case], share: float, kind: str) -> None:
    """Nothing is seen. What is kept is reported, is there, and is not read again."""
    case, report = cases["a swap"], RunReport()
    with pytest.raises((OSError, KeyboardInterrupt)):
        write(place, case, before=fail_after(int(share * case.read_bytes), ERRORS[kind]()), workers=1, report=report)
    assert place.visible() == {}
    if place.parts is None:
        assert report.kept == bool(place.everything())
        assert not report.kept or place.has(report.partial)
    again = write(place, case, workers=1)
    assert place.visible() == case.files
    assert place.everything() == case.files
    assert not again.kept
    assert again.read_bytes <= case.read_bytes
    if share > 0.7 and place.can_resume:
        assert again.read_bytes < 0.9 * case.read_bytes


def test_interrupted_again_and_again_it_ends_as_if_it_had_not_been(place: Place, cases: dict[str, Case]) -> None:
    case, workers, failures = cases["a swap in another layout"], 4, 0
    for share in (0.3, 0.5, 0.7):
        try:
            write(place, case, before=fail_after(int(share * case.read_bytes), OSError("cut")), workers=workers, seed=failures)
        except OSError:
            failures += 1
            assert place.visible() == {}
        else:
            break
    assert failures > 0
    if not place.visible():
        write(place, case, workers=workers)
    assert place.everything() == case.files


def test_restarted_it_begins_anew(place: Place, cases: dict[str, Case]) -> None:
    case = cases["a swap"]
    write(place, case, publish=False)
    again = write(place, case, restart=True)
    assert again.read_bytes >= case.read_bytes
    assert place.everything() == case.files


def test_a_source_that_changes_meanwhile_is_a_stale_plan(place: Place, tmp_path: Path) -> None:
    """Whatever came of it. Undone, the change leaves no trace."""
    pair = llama_pair(tmp_path / "sources", 8)
    case = swap_case(pair)
    victim = max(pair.lang.glob("*.safetensors"))
    data, times, changed = victim.read_bytes(), victim.stat(), []

    def change(read: int) -> None:
        if read > case.read_bytes // 2 and not changed:
            changed.append(read)
            victim.write_bytes(data[: len(data) // 8] + bytes(len(data) - len(data) // 8))

    with pytest.raises(StalePlanError, match=f"{victim.name}: changed after it was planned"):
        write(place, case, before=change, workers=1)
    assert changed
    assert place.visible() == {}
    victim.write_bytes(data)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    write(place, case)
    case.check(place.visible())


def test_another_plans_unfinished_work_is_refused_by_name_and_left_alone(place: Place, cases: dict[str, Case]) -> None:
    if not place.keeps:
        pytest.skip("nothing is kept where every file is one stream")
    case, other = cases["a swap"], cases["a swap in another layout"]
    write(place, case, publish=False)
    before = place.everything()
    with pytest.raises(RecipeError, match=r"out.* another plan"):
        write(place, other)
    with pytest.raises(RecipeError, match="begun with --digest auto"):
        write(place, case, options=replace(COPIED, digest="xxh3"))
    assert place.everything() == before
    if place.parts is None:
        write(place, other, restart=True)
        assert place.everything() == other.files
    else:
        with pytest.raises(RecipeError, match="another plan"):
            write(place, other, restart=True)
        with pytest.raises(RecipeError, match=f"divided into {place.parts} parts, not into 4"):
            write(place, case, parts=4)
        assert place.everything() == before
        write(place, case)
        assert place.everything() == case.files


def test_closed_twice_at_every_stage(places: Opener, cases: dict[str, Case]) -> None:
    """Closed before a step is finished, a sink of whole outputs leaves nothing."""
    case = cases["a swap"]
    for begun in (False, True):
        place = places()
        with case.source() as source:
            if place.parts is None:
                sink = open_sink(place.into, sources=(), options=COPIED, traffic=None, restart=False)
                assert not sink.kept
            else:
                sink = open_part(
                    place.into, case.plan, Part(1, place.parts), source, sources=(), options=COPIED, traffic=None, restart=False
                )  # type: ignore[assignment]
            if begun:
                assert sink.begin(case.plan, source) == {}
            sink.close()
            sink.close()
        assert place.visible() == {}
        if place.parts is None:
            assert not sink.kept
            assert place.everything() == {}
        write(place, case)
        assert place.visible() == case.files


def test_published_and_closed_twice_it_stays(place: Place, cases: dict[str, Case]) -> None:
    if place.parts is not None:
        pytest.skip("who publishes parts holds nothing open")
    case = cases["nothing but a header"]
    with case.source() as source, closing(open_sink(place.into, sources=(), options=COPIED, traffic=None, restart=False)) as sink:
        sink.begin(case.plan, source)
        sink.put("x.txt", b"x")
        sink.publish()
        sink.close()
        sink.close()
        assert not sink.kept
    assert place.everything().keys() == {"x.txt", *(file.name for file in case.plan.files)}

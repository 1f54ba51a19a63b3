"""The files of a plan are the same wherever they go, in whatever order and by however many threads, and hold what they must."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import get_args

import pytest

from lswap_core import RecipeError, WriteOptions
from lswap_core.options import CopyMethod, DigestKind
from tests.sinks.conformance.cases import COPIED, Case, Poisoning, write
from tests.sinks.conformance.conftest import SECOND_SERVERS
from tests.sinks.conformance.places import Place

METHODS: tuple[CopyMethod, ...] = ("auto", "copy_file_range", "sendfile")
CASES = (
    "a swap", "a swap in another layout", "nothing but a header", "shards and tensors of no bytes",
    "tensors of no bytes in another layout", "tensors larger than an upload part",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_plan_gives_the_same_files(place: Place, cases: dict[str, Case], name: str) -> None:
    """Manifest, index and card included. Afterwards nothing else is there."""
    check_files(place, cases[name])


@pytest.mark.parametrize("places", SECOND_SERVERS, indirect=True)
@pytest.mark.parametrize("name", ["nothing but a header", "tensors larger than an upload part"])
def test_it_gives_them_on_a_second_server_too(place: Place, cases: dict[str, Case], name: str) -> None:
    check_files(place, cases[name])


def check_files(place: Place, case: Case) -> None:
    write(place, case)
    found = place.visible()
    case.check(found)
    assert found == case.files
    assert place.everything() == found


@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (5, 2)])
def test_neither_order_nor_threads_change_a_byte(place: Place, cases: dict[str, Case], workers: int, seed: int) -> None:
    """Of a layout in which a file holds bytes of many."""
    write(place, cases["a swap in another layout"], workers=workers, seed=seed)
    assert place.visible() == cases["a swap in another layout"].files


@pytest.mark.parametrize("parts", [1, 7])
def test_the_number_of_parts_changes_no_byte(place: Place, cases: dict[str, Case], parts: int) -> None:
    if place.parts is None:
        pytest.skip("one process writes all of it")
    write(place, cases["a swap"], parts=parts, seed=parts)
    assert place.visible() == cases["a swap"].files


def test_what_a_sink_is_lent_it_reads_at_once_and_gives_back(place: Place, cases: dict[str, Case]) -> None:
    name = "tensors larger than an upload part"
    lenders: list[Poisoning] = []

    def lender(source: object) -> Poisoning:
        lenders.append(Poisoning(source))  # type: ignore[arg-type]
        return lenders[-1]

    write(place, cases[name], evaluator=lender)
    assert place.visible() == cases[name].files
    assert lenders[0].lent > 0


@pytest.mark.parametrize("digest", [digest for digest in get_args(DigestKind) if digest != "auto"])
def test_digests_are_taken_as_asked_for(place: Place, cases: dict[str, Case], digest: DigestKind) -> None:
    """The oracle's digests, as where nothing is asked for, or none; of whole shards only where a sink can."""
    case, options = cases["a swap"], replace(COPIED, digest=digest)
    if digest == "sha256" and not place.has_sha256:
        with pytest.raises(RecipeError, match="--digest sha256"):
            write(place, case, options=options)
        assert place.everything() == {}
        return
    write(place, case, options=options)
    found = place.visible()
    case.check(found, digest)
    assert {name for name, data in found.items() if data != case.files[name]} <= {"lswap_manifest.json", "README.md"}
    recorded = {shard["name"]: shard.get("sha256") for shard in json.loads(found["lswap_manifest.json"])["shards"]}
    taken = {file.name: hashlib.sha256(found[file.name]).hexdigest() for file in case.plan.files}
    assert recorded == (taken if digest == "sha256" else dict.fromkeys(taken))


@pytest.mark.parametrize("method", METHODS)
def test_the_method_of_copying_changes_no_tensor(place: Place, cases: dict[str, Case], method: CopyMethod) -> None:
    """Where there is that method. Cloning takes certain filesystems, and is tested in tests/sinks/test_sharing.py."""
    case, options = cases["a swap"], WriteOptions(copy_method=method, digest="xxh3")
    if not place.has_sha256 and method != "auto":
        with pytest.raises(RecipeError, match=f"--copy-method {method} is for disks"):
            write(place, case, options=options)
        assert place.everything() == {}
    else:
        write(place, case, options=options)
        case.check(place.visible(), "xxh3")


def test_links_are_for_one_process_on_a_disk(place: Place, cases: dict[str, Case]) -> None:
    if place.has_sha256 and place.parts is None:
        pytest.skip("links are made here, as tests/sinks/test_sharing.py has it")
    with pytest.raises(RecipeError, match="--link hard"):
        write(place, cases["a swap"], options=replace(COPIED, link="hard"))
    assert place.everything() == {}

"""A checkpoint is the same wherever it is; what is wrong with one is refused in the same words."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from lswap_core import FormatError, LswapError, SourceError, open_checkpoint
from lswap_core.checkpoint.catalogue import Checkpoint
from tests.build import normal, read_model, write_model
from tests.hostile.corpus import DIRECTORY_CASES, FILE_CASES
from tests.sources.conformance.places import Disk, Place

BESIDE = "additional_chat_templates/tool.jinja"
"""What is found beside the weights only where files are listed."""


def facts(checkpoint: Checkpoint) -> dict[str, object]:
    """All that is the same at every place."""
    return {
        "tensors": dict(checkpoint.tensors),
        "shards": [(shard.name, shard.header.raw, shard.header.file_size, shard.fingerprint) for shard in checkpoint.shards],
        "index": checkpoint.index,
        "config": checkpoint.config,
        "sidecars": {sidecar.name: (sidecar.size, sidecar.sha256, sidecar.read()) for sidecar in checkpoint.sidecars},
    }


def test_a_checkpoint_is_the_same_wherever_it_is(place: Place, expert: Path) -> None:
    found, here = (open_checkpoint(at, role="lang", name="acme/what") for at in (place.shared(expert).location, expert))
    wanted = facts(here)
    if not place.lists_files:
        sidecars = wanted["sidecars"]
        assert isinstance(sidecars, dict)
        del sidecars[BESIDE]
    assert facts(found) == wanted
    assert found.tensors.keys() == read_model(expert).keys()
    assert (found.role, found.name) == ("lang", "acme/what")
    assert {ref.role for ref in found.tensors.values()} == {"lang"}
    assert {shard.mtime_ns > 0 for shard in found.shards} == {place.keeps_times}


def test_one_file_without_an_index(place: Place, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = write_model(tmp_path / "single", {"a": normal("F32", (7, 3), rng), "b": normal("BF16", (5,), rng)})
    assert facts(open_checkpoint(place.put(root).location, role="math")) == facts(open_checkpoint(root, role="math"))


def test_a_header_that_is_longer_than_was_guessed(place: Place, tmp_path: Path) -> None:
    """Of 90 kB, which no index announces."""
    rng = np.random.default_rng(0)
    root = write_model(tmp_path / "long", {f"{'x' * 80}.{k}": normal("F32", (k % 3,), rng) for k in range(600)})
    assert facts(open_checkpoint(place.put(root).location, role="math")) == facts(open_checkpoint(root, role="math"))


def test_a_location_may_name_one_file(place: Place, expert: Path) -> None:
    if not place.opens_files:
        pytest.skip("a location there names a whole repository")
    placed, name = place.shared(expert), "model-00002-of-00003.safetensors"
    found = open_checkpoint(f"{placed.location}/{name}", role="math")
    assert found.tensors == open_checkpoint(expert / name, role="math").tensors
    assert [shard.name for shard in found.shards] == [name]


# What cannot be opened.


@pytest.mark.parametrize("name", ["none", "none/model.safetensors"])
def test_where_nothing_is_one_line_says_so(place: Place, name: str) -> None:
    if "/" in name and not place.opens_files:
        pytest.skip("a location there names a whole repository")
    location = place.location_of(name)
    with pytest.raises((SourceError, FileNotFoundError)) as caught:
        open_checkpoint(location, role="math")
    assert "\n" not in str(caught.value)
    assert location in str(caught.value)


def test_a_server_that_does_not_answer_is_one_line_that_says_what_to_check(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if not place.remote:
        pytest.skip("a disk has no server")
    location = place.unreachable("model", monkeypatch)
    with pytest.raises(SourceError) as caught:
        open_checkpoint(location, role="math")
    said = str(caught.value)
    assert "\n" not in said
    assert location in said
    assert "http://127.0.0.1:" in said
    assert "check" in said
    assert "network" in said


def test_an_index_that_names_a_missing_shard(place: Place, small: Path) -> None:
    placed, name = place.put(small), "model-00002-of-00003.safetensors"
    place.change(placed, name, None)
    with pytest.raises(FormatError, match=f"shard {name} is missing") as caught:
        open_checkpoint(placed.location, role="math")
    assert str(caught.value).startswith(f"{placed.path}/model.safetensors.index.json: ")


def test_a_shard_that_no_tensor_of_the_index_is_in(place: Place, small: Path) -> None:
    """The index and the headers must agree, at every place."""
    placed, names = place.put(small), [f"model-0000{k}-of-00003.safetensors" for k in (1, 2)]
    place.change(placed, names[0], (small / names[1]).read_bytes())
    with pytest.raises(FormatError, match=f"the index says that it is in {names[0]}, but it is not"):
        open_checkpoint(placed.location, role="math")


def test_a_header_that_is_longer_than_its_file(place: Place, small: Path) -> None:
    placed, name = place.put(small), "model-00001-of-00003.safetensors"
    place.change(placed, name, (small / name).read_bytes()[:300])
    with pytest.raises(FormatError, match="but the file ends after") as caught:
        open_checkpoint(placed.location, role="math")
    assert str(caught.value).startswith(f"{placed.path}/{name}: ")


def refusal(location: str, path: str) -> str:
    """What opening says, with PLACE for the place's own name."""
    try:
        open_checkpoint(location, role="math")
    except LswapError as error:
        said = str(error)
        assert "\n" not in said
        return f"{type(error).__name__}: {said.replace(path, 'PLACE').replace(location, 'PLACE')}"
    return "nothing"


def every(usual: int, place: Place) -> int:
    """How many cases of the corpus to go on by: `usual`, four times that where a case takes long, and one in the long run."""
    if not place.remote:
        pytest.skip("the others are compared with the disk, whose words tests/hostile checks")
    if os.environ.get("LSWAP_LONG"):
        return 1
    return usual if place.fills_fast else 4 * usual


def test_hostile_headers_are_refused_in_the_same_words(place: Place, tmp_path: Path) -> None:
    """Malformed files of the corpus, each as the only one of a checkpoint; among them all that have no whole header length."""
    here, wrong, step = Disk(tmp_path), {}, every(6, place)
    for number, case in enumerate(FILE_CASES):
        assert case.data is not None
        if number % step and len(case.data) > 8:
            continue
        root = tmp_path / f"case-{number}"
        root.mkdir()
        (root / "model.safetensors").write_bytes(case.data)
        there, beside = place.put(root), here.put(root)
        found, wanted = refusal(there.location, there.path), refusal(beside.location, beside.path)
        assert wanted.startswith("FormatError: PLACE/model.safetensors: "), case.id
        if found != wanted:
            wrong[case.id] = (found, wanted)
    assert len(FILE_CASES) > 100
    assert not wrong


def is_plain(root: Path) -> bool:
    """Files only, none of them large: what any place can hold."""
    found = [path.lstat() for path in root.rglob("*")]
    return all(stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20 for status in found)


OTHER_WORDS = {
    "index-file-too-long": "a server says in its own words that an address is too long",
    "index-names-no-shard-for-one": "a shard is missing and another has a tensor too many; a disk is read in order",
    "directory-empty": "in a store, a place without files is none",
}
"""Cases of which places say different things that are true."""
OTHER_WORDS_UNLISTED = ("no-index", "pickled-")
"""Beginnings of cases in which files are named that nobody knows of where none are listed."""


def test_hostile_directories_are_refused_in_the_same_words(place: Place, tmp_path: Path) -> None:
    here, wrong, tried, step = Disk(tmp_path), {}, 0, every(3, place)
    for number, case in enumerate(DIRECTORY_CASES):
        if number % step:
            continue
        (tmp_path / f"case-{number}").mkdir()
        root = case.make(tmp_path / f"case-{number}")
        if case.late or root.is_symlink() or not is_plain(root):
            continue
        tried += 1
        there, beside = place.put(root), here.put(root)
        found, wanted = refusal(there.location, there.path), refusal(beside.location, beside.path)
        assert "nothing" not in (found, wanted), case.id
        if case.id in OTHER_WORDS or (not place.lists_files and case.id.startswith(OTHER_WORDS_UNLISTED)):
            continue
        if found != wanted:
            wrong[case.id] = (found, wanted)
    assert tried > 40 / step
    assert not wrong

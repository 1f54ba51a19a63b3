"""Outputs on filesystems that share extents, and on one that does not: what is shared, what is written, what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from lswap_core import LayerSwap, WriteOptions, execute, lay_out, merge, open_checkpoint, verify
from lswap_core.errors import RecipeError
from lswap_core.io.traffic import Traffic
from lswap_core.options import CopyMethod, DigestKind
from lswap_core.plan.division import Part
from lswap_core.plan.plan import Plan
from lswap_core.plan.runs import is_plain
from lswap_core.verbs.parts import apply_part, publish
from tests import oracle
from tests.build import Model, Pair, normal, read_model, tree, write_model
from tests.images import BLOCK_BYTES, Mounted, blocks_on_disk, mounted, run

LAYERS = 12
SWAP = LayerSwap(bottom=3, top=1, transition=1)
SHARES = {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.5, 10: 0.5, 11: 1.0}
UNCHANGED = [f"model-{k:05d}-of-00006.safetensors" for k in (3, 4, 5)]
CHANGED = [f"model-{k:05d}-of-00006.safetensors" for k in (1, 2, 6)]


@cache
def expert(seed: int) -> Model:
    """Tensors of which most end inside a block."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (1000, 256)}
    for n in range(LAYERS):
        shapes[f"model.layers.{n}.input_layernorm.weight"] = (256,)
        shapes[f"model.layers.{n}.mlp.down_proj.weight"] = (256, 1401)
        shapes[f"model.layers.{n}.mlp.up_proj.weight"] = (1401, 256)
        shapes[f"model.layers.{n}.self_attn.q_proj.weight"] = (256, 256)
    shapes["model.norm.weight"] = (256,)
    return {name: normal("BF16", shape, rng) for name, shape in shapes.items()}


def make_pair(root: Path) -> Pair:
    """Six shards of two layers each: 1, 2 and 6 are changed by SWAP, the others not."""
    models = {role: dict(expert(seed)) for seed, role in enumerate(("math", "lang"))}
    names = list(models["math"])
    files = [[n for n in names if f".{2 * k}." in n or f".{2 * k + 1}." in n] for k in range(6)]
    files[0].insert(0, names[0])
    files[5].append(names[-1])
    for role, model in models.items():
        write_model(root / role, model, files=files, config={"num_hidden_layers": LAYERS})
    return Pair(root / "math", root / "lang", models["math"], models["lang"])


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(request.param, tmp_path_factory.mktemp(request.param)) as found:
        make_pair(found.point / "pair")
        yield found


@pytest.fixture
def sharing(disk: Mounted) -> Mounted:
    if not disk.shares:
        pytest.skip(f"{disk.kind} cannot share extents")
    return disk


@pytest.fixture
def lone(disk: Mounted) -> Mounted:
    if disk.shares:
        pytest.skip(f"{disk.kind} shares extents")
    return disk


@pytest.fixture
def pair(disk: Mounted) -> Iterator[Pair]:
    """The experts; after the test they must be what they were, and nothing else be left on the disk."""
    root = disk.point / "pair"
    before = {name: sha256(data).digest() for name, data in tree(root).items()}
    yield Pair(root / "math", root / "lang", expert(0), expert(1))
    assert {name: sha256(data).digest() for name, data in tree(root).items()} == before
    for path in disk.point.iterdir():
        if path.name not in ("pair", "lost+found"):
            shutil.rmtree(path)


@cache
def expected() -> Model:
    """What SWAP makes of the experts."""
    math, lang = expert(0), expert(1)
    share_of = {name: SHARES.get(int(name.split(".")[2]), 0.0) for name in math if ".layers." in name}
    return oracle.swapped(math, lang, share_of)


def plan_of(pair: Pair, shard_size: int | None = None) -> Plan:
    draft = SWAP.draft(math=open_checkpoint(pair.math, role="math"), lang=open_checkpoint(pair.lang, role="lang"))
    return lay_out(draft, shard_size)


def merged(pair: Pair, into: Path, shard_size: int | None = None, **options: Any) -> dict[str, int]:
    """Merge; returns the bytes by method."""
    traffic = Traffic()
    merge(
        SWAP, math=pair.math, lang=pair.lang, into=into, shard_size=shard_size, options=WriteOptions(**options), traffic=traffic
    )
    return traffic.bytes_by_method


@pytest.mark.parametrize("shard_size", [None, 2_000_000])
def test_copied_tensors_share_their_source_s_extents(sharing: Mounted, pair: Pair, shard_size: int | None) -> None:
    before = sharing.used_bytes()
    out = sharing.point / "out"
    methods = merged(pair, out, shard_size)
    written = sharing.used_bytes() - before
    plan = plan_of(pair, shard_size)
    copied = [step for step in plan.steps if is_plain(step)]
    computed_bytes = sum(step.size_bytes for step in plan.steps) - sum(step.size_bytes for step in copied)
    theirs = {("math", f.name): blocks_on_disk(f) for f in pair.math.glob("*.safetensors")}
    theirs |= {("lang", f.name): blocks_on_disk(f) for f in pair.lang.glob("*.safetensors")}
    ours = {file.name: blocks_on_disk(out / file.name) for file in plan.files}
    whole = in_phase = shared = 0
    for step in copied:
        ref = step.made_of.refs[0]
        for block in range(-(-step.begin // BLOCK_BYTES), step.end // BLOCK_BYTES):
            at, rest = divmod(block * BLOCK_BYTES + ref.begin - step.begin, BLOCK_BYTES)
            whole += 1
            in_phase += rest == 0
            shared += rest == 0 and ours[step.file][block] == theirs[ref.role, ref.file][at]
    assert shared == in_phase
    # laid out anew, a file that holds parts of two sources' files has the phase of the larger part
    assert in_phase == whole if shard_size is None else in_phase > 0.75 * whole
    assert methods["clone"] >= shared * BLOCK_BYTES
    assert written < computed_bytes + (whole - shared) * BLOCK_BYTES + 2 * BLOCK_BYTES * len(plan.steps) + 2_000_000
    if shard_size is None:
        for name in UNCHANGED:
            assert ours[name] == theirs["math", name]


@pytest.mark.parametrize("shard_size", [None, 2_000_000])
def test_the_output_lives_on_without_its_sources(sharing: Mounted, pair: Pair, shard_size: int | None) -> None:
    copy = sharing.point / "copy"
    run("cp", "-r", "--reflink=always", sharing.point / "pair", copy)
    merged(Pair(copy / "math", copy / "lang", {}, {}), sharing.point / "out", shard_size)
    shutil.rmtree(copy)
    sharing.remount()
    assert read_model(sharing.point / "out") == expected()
    assert verify(sharing.point / "out").tensors


@pytest.mark.parametrize("shard_size", [None, 2_000_000])
def test_what_is_shared_needs_no_room(
    sharing: Mounted, pair: Pair, shard_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(sharing.point)._replace(free=12_000_000)  # the output has 19 MB
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    merged(pair, sharing.point / "out", shard_size)
    assert read_model(sharing.point / "out") == expected()
    with pytest.raises(OSError, match="are to be written, the disk has") as caught:
        merged(pair, sharing.point / "second", shard_size, copy_method="read_write")
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in sharing.point.iterdir()} == {"pair", "out"}


@pytest.mark.parametrize("method", get_args(CopyMethod))
@pytest.mark.parametrize("shard_size", [None, 2_000_000])
def test_every_method_gives_the_same_tensors(disk: Mounted, pair: Pair, method: str, shard_size: int | None) -> None:
    if method == "clone" and not disk.shares:
        pytest.skip("refused on ext4, which has a test of its own")
    methods = merged(pair, disk.point / "out", shard_size, copy_method=method)
    if method != "auto":
        assert methods.keys() <= {method, "read_write", "compute"}
        assert methods[method] > 10_000_000
    plan = plan_of(pair, shard_size)
    assert sum(methods.values()) == sum(step.size_bytes for step in plan.steps)
    disk.remount()
    assert read_model(disk.point / "out") == expected()
    assert {f.name: f.header.raw for f in plan.files} == {
        f.name: f.header.raw for f in open_checkpoint(disk.point / "out", role="math").shards
    }
    verify(disk.point / "out", locations={"math": pair.math, "lang": pair.lang})


def test_forced_cloning_is_refused_where_it_cannot_be(lone: Mounted, pair: Pair) -> None:
    argv = [sys.executable, "-m", "lswap_core", "merge", "--math", pair.math, "--lang", pair.lang, "--bottom", "1"]
    argv += ["--copy-method", "clone", "--out", lone.point / "out"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lswap-core: error: --copy-method clone does not work between these files")
    for shard_size in (None, 2_000_000, 2_000):  # the last has shards that hold not one whole block
        with pytest.raises(RecipeError, match="--copy-method clone does not work"):
            merged(pair, lone.point / "out", shard_size, copy_method="clone")
    assert {path.name for path in lone.point.iterdir()} == {"pair", "lost+found"}


def test_between_two_filesystems_bytes_are_copied(disk: Mounted, pair: Pair, tmp_path: Path) -> None:
    methods = merged(pair, tmp_path / "out")
    assert "clone" not in methods
    assert read_model(tmp_path / "out") == expected()
    with pytest.raises(RecipeError, match="--copy-method clone does not work"):
        merged(pair, tmp_path / "refused", copy_method="clone")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("shard_size", [None, 2_000_000])
def test_digests_of_what_is_shared(sharing: Mounted, pair: Pair, shard_size: int | None) -> None:
    root = sharing.point
    for kind in ("auto", "xxh3", "none", "sha256"):
        merged(pair, root / kind, shard_size, digest=kind)
    manifests = {kind: verify(root / kind) for kind in ("auto", "xxh3", "none", "sha256")}
    digests = {kind: {name: r.digest for name, r in m.tensors.items()} for kind, m in manifests.items()}
    assert None not in digests["xxh3"].values()
    assert digests["sha256"] == digests["xxh3"]
    assert set(digests["none"].values()) == {None}
    taken = {name for name, digest in digests["auto"].items() if digest is not None}
    computed = {step.name for step in plan_of(pair, shard_size).steps if not is_plain(step)}
    assert computed <= taken < set(expected())
    assert all(digests["auto"][name] == digests["xxh3"][name] for name in taken)
    assert {r.name: r.sha256 for r in manifests["sha256"].shards} == {
        path.name: run("sha256sum", path).split()[0] for path in (root / "sha256").glob("*.safetensors")
    }
    said = run(sys.executable, "-m", "lswap_core", "verify", root / "auto")
    assert f"{len(manifests['auto'].undigested)} tensors shared with a source, without a digest, not read" in said
    assert "not read" not in run(sys.executable, "-m", "lswap_core", "verify", root / "xxh3")
    assert read_model(root / "auto") == read_model(root / "sha256") == read_model(root / "none") == expected()


def test_hard_links_stand_for_unchanged_shards(lone: Mounted, pair: Pair) -> None:
    before = lone.used_bytes()
    out = lone.point / "out"
    methods = merged(pair, out, link="hard")
    for name in UNCHANGED:
        assert os.path.samefile(out / name, pair.math / name)
    for name in CHANGED:
        assert (out / name).stat().st_nlink == 1
    changed_bytes = sum((out / name).stat().st_size for name in CHANGED)
    assert lone.used_bytes() - before < changed_bytes + 1_000_000
    assert methods["link"] == sum(step.size_bytes for step in plan_of(pair).steps if step.file in UNCHANGED)
    assert read_model(out) == expected()
    verify(out, locations={"math": pair.math, "lang": pair.lang})


def test_without_being_asked_nothing_is_linked(disk: Mounted, pair: Pair) -> None:
    merged(pair, disk.point / "out")
    assert all(path.stat().st_nlink == 1 for path in (disk.point / "out").iterdir())


@pytest.mark.parametrize("digest", ["auto", "xxh3"])
def test_parts_share_what_they_copy(disk: Mounted, pair: Pair, digest: DigestKind) -> None:
    """On every filesystem the same files; where extents are shared, blocks are too, and fewer digests are taken by `auto`."""
    plan, options = plan_of(pair), WriteOptions(digest=digest)
    one, many = disk.point / "one", disk.point / "many"
    execute(plan, into=one, options=options)
    before, traffic = disk.used_bytes(), Traffic()
    for number in (3, 1, 2):
        apply_part(plan, Part(number, 3), into=many, options=options, traffic=traffic)
    publish(plan, into=many)
    copied_bytes = sum(step.size_bytes for step in plan.steps if is_plain(step))
    if disk.shares:
        assert traffic.bytes_by_method["clone"] > 0.98 * copied_bytes
        assert disk.used_bytes() - before < sum(step.size_bytes for step in plan.steps) - 0.9 * copied_bytes
    found, wanted = tree(many), tree(one)
    if disk.shares and digest == "auto":
        manifests = [json.loads(files.pop("lswap_manifest.json"))["tensors"] for files in (found, wanted)]
        for ours, theirs in zip(*(manifest.values() for manifest in manifests), strict=True):
            assert "digest" not in ours or "digest" not in theirs or ours["digest"] == theirs["digest"]
    assert found == wanted
    verify(many, locations={"math": pair.math, "lang": pair.lang})

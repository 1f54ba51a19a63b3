"""What is asked of a network before tensors come, and what counts of them: nothing of a file that is not the planned one."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lswap_core as library
from lswap_core.checkpoint.catalogue import TensorRef
from lswap_core.checkpoint.dtypes import DTYPES
from lswap_core.errors import StalePlanError
from lswap_core.plan.plan import Step
from lswap_core.plan.runs import Run
from lswap_core.sources.remote import RemoteFile, RemoteSource
from tests.build import HANG_SECONDS
from tests.sources.remote.conftest import LANG, MATH, Command
from tests.sources.remote.hub_server import HubServer

DATA = bytes(range(256)) * 16


class Reader:
    path, size, etag = "there/file", len(DATA), None

    def stream(self, begin: int, end: int) -> Generator[bytes, None, None]:
        yield DATA[begin:end]


class Folder:
    root, name, only = "there", "there", None

    def __init__(self) -> None:
        self.opened: list[str] = []

    def sizes(self) -> Mapping[str, int | None]:
        return {"file": len(DATA)}

    def reader(self, name: str) -> Reader:
        self.opened.append(name)
        return Reader()

    def copy_of(self, name: str) -> Path | None:
        return None

    def mtime_ns(self, name: str) -> int:
        return 0


def ref(begin: int, end: int) -> TensorRef:
    return TensorRef("lang", "file", DTYPES["U8"], (end - begin,), begin, end)


def test_threads_go_on_while_one_confirms_a_file_and_none_is_done_before() -> None:
    """The first reader confirms; the others read meanwhile, and wait only where they say that a run is done."""
    asked, answer, confirmed = threading.Event(), threading.Event(), []
    folder = Folder()

    def confirm(reader: Any) -> None:
        asked.set()
        assert answer.wait(HANG_SECONDS)
        confirmed.append(reader.path)

    source = RemoteSource({("lang", "file"): RemoteFile(folder, "file", len(DATA), confirm)})
    read, done = threading.Semaphore(0), []

    def work(number: int) -> None:
        buffer, mine = memoryview(bytearray(256)), ref(number * 256, number * 256 + 256)
        source.read_into(mine, 0, buffer)
        assert buffer == DATA[mine.begin : mine.end]
        read.release()
        source.confirm([mine])
        done.append(number)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(work, 0)
        assert asked.wait(HANG_SECONDS)
        others = [pool.submit(work, number) for number in (1, 2, 3)]
        for _ in others:
            assert read.acquire(timeout=HANG_SECONDS)
        assert not done
        answer.set()
        for future in (first, *others):
            future.result(HANG_SECONDS)
    assert confirmed == ["there/file"]
    assert folder.opened == ["file"]
    source.close()


def test_of_a_file_that_is_another_no_run_is_done() -> None:
    def confirm(_: Any) -> None:
        raise StalePlanError("another")

    source = RemoteSource({("lang", "file"): RemoteFile(Folder(), "file", len(DATA), confirm)})
    for _ in range(2):
        with pytest.raises(StalePlanError, match="another"):
            source.confirm([ref(0, 8)])
    other = RemoteSource({("lang", "file"): RemoteFile(Folder(), "file", len(DATA) - 1)})
    with pytest.raises(StalePlanError, match="changed after it was planned"):
        other.read_into(ref(0, 8), 0, memoryview(bytearray(8)))


def test_what_takes_longest_is_begun_first(experts: Path) -> None:
    plan = library.lay_out(
        library.LayerSwap(bottom=4, top=2, transition=2).draft(
            math=library.open_checkpoint(experts / "math", role="math"),
            lang=library.open_checkpoint(experts / "lang", role="lang"),
        )
    )
    given = [Run((step,)) for step in plan.steps]
    order = RemoteSource({}).arrange(given)
    assert sorted(order, key=given.index) == given
    sizes = [travelling(run.steps[0]) for run in order]
    assert sizes == sorted(sizes, reverse=True)


def travelling(step: Step) -> int:
    return sum(operand.size_bytes for operand in step.made_of.refs)


@pytest.mark.parametrize("swap", [("--bottom", "4", "--top", "2", "--transition", "2"), ("--lang-layers", "1")])
def test_before_its_tensors_only_what_is_read_of_a_file_is_asked_for(
    swap: tuple[str, ...], run: Command, hub: HubServer, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    made = run("plan", "--math", MATH, "--lang", LANG, *swap, "--out", path, "--quiet")
    assert made.status == 0, made.err
    hub.forget()
    done = run("apply", path, "--out", tmp_path / "out", "--quiet")
    assert done.status == 0, done.err
    plan = library.read_plan(path)
    names = {"math": MATH, "lang": LANG}
    read = {f"{names[r.role]}/{r.file}" for step in plan.steps for r in step.made_of.refs}
    looked_at = [p.replace(f"/resolve/{p.split('/')[4]}", "")[1:] for method, p, _ in hub.requests if method == "HEAD"]
    beside = {f"{MATH}/{sidecar.name}" for sidecar in plan.sidecars}
    assert sorted(looked_at) == sorted(read | beside)
    begun = [p for _, p, headers in hub.requests if headers.get("range", "").startswith("bytes=0-") and ".safetensors?" in p]
    assert sorted(p.partition("?")[0][1:] for p in begun) == sorted(read)
    assert not [p for _, p, _ in hub.requests if "/api/" in p or p.endswith("index.json")]


def test_a_web_server_is_asked_once_for_each_file_that_is_read(hub: HubServer, tmp_path: Path) -> None:
    web = {role: f"{hub.cdn}/plain/acme/{role}" for role in ("math", "lang")}
    math, lang = (library.open_checkpoint(place, role=role) for role, place in web.items())
    plan = library.lay_out(library.LayerSwap(bottom=4, top=2).draft(math=math, lang=lang))
    hub.forget()
    library.execute(plan, into=tmp_path / "out")
    read = {f"/plain/acme/{ref.role}/{ref.file}" for step in plan.steps for ref in step.made_of.refs}
    beside = {f"/plain/acme/math/{sidecar.name}" for sidecar in plan.sidecars}
    assert sorted(path for method, path, _ in hub.requests if method == "HEAD") == sorted(read | beside)

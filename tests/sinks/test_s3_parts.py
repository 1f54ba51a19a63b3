"""One output in a store by many workers: the objects that one process makes, in whatever order and however often they are done."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from lswap_core import (
    LayerSwap,
    Part,
    RecipeError,
    WriteOptions,
    apply_part,
    execute,
    kernels,
    lay_out,
    merge,
    open_checkpoint,
    publish,
)
from lswap_core.cli.main import main
from lswap_core.engine import executor
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import FormatError, SourceError
from lswap_core.io.ports import Silence
from lswap_core.io.traffic import Traffic
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan
from lswap_core.recipe.expressions import Blend
from lswap_core.sinks.part_records import Terms
from lswap_core.sinks.s3 import part_sink
from lswap_core.sinks.s3.part_sink import S3PartSink
from lswap_core.sinks.s3.state import SharedState
from lswap_core.verbs.merge import write_plan
from tests.buckets import Environ, Refusal, Store, empty, large_pair, localbucket_store, moto_store, use
from tests.build import HANG_SECONDS, Pair, llama_pair, tree, unmeasured
from tests.sinks.test_s3 import MIB, SWAP, make_plan, open_local, seams, shards

OUT = "s3://models/out"
STATE = ".lswap-partial/state.json"


@dataclass(frozen=True)
class Case:
    """A plan, its file, and what one process makes of it."""

    plan: Plan
    file: Path
    pair: Pair
    expected: dict[str, bytes]

    def argv(self, part: Part, *more: str) -> list[str]:
        argv = [sys.executable, "-m", "lswap_core", "apply", str(self.file), "--out", OUT, "--part", str(part)]
        return [*argv, "--quiet", "--workers", "2", *more]


def make_case(root: Path, pair: Pair) -> Case:
    plan = make_plan(pair)
    write_plan(plan, root / "plan.json")
    execute(plan, into=root / "one")
    return Case(plan, root / "plan.json", pair, tree(root / "one"))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A plan of 47 MB in two shards."""
    root = tmp_path_factory.mktemp("large")
    return make_case(root, large_pair(root))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A plan of three shards, each of which is one part of an upload."""
    root = tmp_path_factory.mktemp("small")
    return make_case(root, llama_pair(root))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Store]]:
    with moto_store() as moto, localbucket_store(tmp_path_factory.mktemp("second") / "buckets") as second:
        yield {"moto": moto, "localbucket": second}


def connect_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client for all workers of a test that are in this process: to make one takes longer than most parts."""
    monkeypatch.setattr(part_sink, "connect", cache(part_sink.connect))


@pytest.fixture
def store(servers: dict[str, Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The server that knows every call, with nothing in it but an empty bucket `models`."""
    server = servers["moto"]
    use(server, monkeypatch, tmp_path / "none")
    connect_once(monkeypatch)
    server.client().create_bucket(Bucket="models")
    server.uploaded.clear()
    server.calls.clear()
    yield server
    server.refuse, server.before = (lambda _: None), (lambda _: None)
    empty(server, "models")


@pytest.fixture
def second(servers: dict[str, Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """The server that knows fewer, and a bucket of the test's own."""
    server = servers["localbucket"]
    use(server, monkeypatch, tmp_path / "none")
    connect_once(monkeypatch)
    return server


def do(plan: Plan, count: int, *, seed: int = 0, into: str = OUT, **how: Any) -> None:
    """All parts, in some order."""
    numbers = list(range(1, count + 1))
    random.Random(seed).shuffle(numbers)
    for number in numbers:
        assert apply_part(plan, Part(number, count), into=into, **how).anew


@pytest.mark.parametrize("count", [16])
def test_any_parts_in_any_order_make_what_one_process_makes(store: Store, case: Case, count: int) -> None:
    do(case.plan, count, seed=count)
    there = store.tree("models", "out").keys()
    assert there == {STATE, *(f".lswap-partial/part-{n}-of-{count}.json" for n in range(1, count + 1))}
    puts = len(store.calls)
    publish(case.plan, into=OUT)
    assert store.tree("models", "out") == case.expected
    assert store.uploads("models") == []
    visible = [path for method, path, _ in store.calls[puts:] if method == "PUT"]
    assert visible[-2:] == ["/models/out/model.safetensors.index.json", "/models/out/lswap_manifest.json"]
    files = {name: len(data) for name, data in case.expected.items()}
    assert store.sent_bytes("models", "out") == sum(files.values())


@pytest.fixture(scope="module")
def experts(servers: dict[str, Store], case: Case) -> dict[str, str]:
    """The pair in a bucket of its own, in either store."""
    for server in servers.values():
        server.client().create_bucket(Bucket="experts")
        server.load("experts", "math", case.pair.math)
        server.load("experts", "lang", case.pair.lang)
    return {"math": "s3://experts/math", "lang": "s3://experts/lang"}


def plan_within(experts: dict[str, str]) -> Plan:
    return lay_out(
        SWAP.draft(math=open_checkpoint(experts["math"], role="math"), lang=open_checkpoint(experts["lang"], role="lang"))
    )


@pytest.mark.parametrize("count", [4])
def test_from_bucket_to_bucket_no_more_travels_than_with_one_process(
    store: Store, experts: dict[str, str], case: Case, count: int
) -> None:
    plan = plan_within(experts)
    execute(plan, into="s3://models/one")
    alone = store.sent_bytes("models", "one")
    do(plan, count, seed=count)
    publish(plan, into=OUT)
    assert store.tree("models", "out") == store.tree("models", "one")
    assert shards(store.tree("models", "out")) == shards(case.expected)
    assert store.uploads("models") == []
    sent = store.sent_bytes("models", "out")
    blended = sum(step.size_bytes for step in plan.steps if isinstance(step.made_of, Blend))
    beside = sum(len(data) for name, data in case.expected.items() if not name.endswith(".safetensors"))
    headers = sum(file.header.data_begin for file in plan.files)
    assert blended <= sent <= blended + headers + beside + 5 * MIB * seams(plan)
    assert sent == alone < plan.write_bytes / 2


def test_a_second_server_copies_parts_too(second: Store, experts: dict[str, str], case: Case) -> None:
    second.client().create_bucket(Bucket="copied")
    plan = plan_within(experts)
    do(plan, 3, into="s3://copied/out")
    publish(plan, into="s3://copied/out")
    assert shards(second.tree("copied", "out")) == shards(case.expected)


def test_workers_that_have_the_experts_elsewhere_agree_with_the_first(store: Store, experts: dict[str, str], case: Case) -> None:
    """The first has them in the store, the others on their disks: the store copies for all."""
    here = {"math": case.pair.math, "lang": case.pair.lang}
    for number in (2, 1, 3):
        apply_part(case.plan, Part(number, 3), into=OUT, locations=experts if number == 2 else here)
    publish(case.plan, into=OUT)
    assert shards(store.tree("models", "out")) == shards(case.expected)
    assert store.sent_bytes("models", "out") < case.plan.write_bytes / 2


def test_a_store_that_copies_no_parts_is_sent_everything(store: Store, experts: dict[str, str], case: Case) -> None:
    store.refuse = lambda e: ("501 Not Implemented", "NotImplemented") if "HTTP_X_AMZ_COPY_SOURCE" in e else None
    plan = plan_within(experts)
    do(plan, 3)
    publish(plan, into=OUT)
    assert store.tree("models", "out") == case.expected | {"README.md": store.tree("models", "out")["README.md"]}


def test_at_once_in_processes_of_their_own(store: Store, case: Case) -> None:
    """Two of them do the same part, and all of them try to be the first."""
    parts = [Part(k, 3) for k in (1, 2, 2, 3)]
    workers = [subprocess.Popen(case.argv(part), env=unmeasured(), stderr=subprocess.PIPE) for part in parts]
    for worker in workers:
        _, said = worker.communicate(timeout=HANG_SECONDS)
        assert worker.returncode == 0, said
    assert main(["publish", str(case.file), "--out", OUT, "--quiet"]) == 0
    assert store.tree("models", "out") == case.expected
    assert store.uploads("models") == []


def hold_part(store: Store, number: int) -> tuple[threading.Event, threading.Event]:
    """So many parts of uploads are taken, and the next one only when the second event is set; the first tells that it came."""
    came, gate, left = threading.Event(), threading.Event(), threading.Semaphore(number)

    def hold(environ: Environ) -> None:
        if "partNumber" in environ["QUERY_STRING"] and not left.acquire(blocking=False):
            came.set()
            assert gate.wait(timeout=HANG_SECONDS)

    store.before = hold
    return came, gate


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_worker_costs_its_part_and_no_other(store: Store, case: Case, seed: int) -> None:
    rng = random.Random(seed)
    victim, *others = rng.sample([1, 2], 2)
    first = others if rng.random() < 0.5 else []
    for number in first:
        apply_part(case.plan, Part(number, 2), into=OUT)
    came, gate = hold_part(store, seed)
    process = subprocess.Popen(case.argv(Part(victim, 2), "--workers", "1"), env=unmeasured(), stderr=subprocess.DEVNULL)
    try:
        assert came.wait(timeout=HANG_SECONDS)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        store.before = lambda _: None
        gate.set()
    store.settle()
    assert all(name.startswith(".lswap-partial/") for name in store.tree("models", "out"))
    if first:
        with pytest.raises(RecipeError, match=f"part {victim} of 2 is missing"):
            publish(case.plan, into=OUT)
    for number in rng.sample([1, 2], 2):
        assert apply_part(case.plan, Part(number, 2), into=OUT).anew == (number not in first)
    publish(case.plan, into=OUT)
    assert store.tree("models", "out") == case.expected
    assert store.uploads("models") == []


def test_killed_before_it_could_say_so_its_uploads_do_not_stay(store: Store, small: Case) -> None:
    begun, gone = threading.Event(), threading.Event()

    def refuse(environ: Environ) -> Refusal | None:
        if not environ["PATH_INFO"].endswith("state.json") or environ["REQUEST_METHOD"] != "PUT":
            return None
        begun.set()
        assert gone.wait(timeout=HANG_SECONDS)
        return "403 Forbidden", "AccessDenied"  # to nobody: the process is gone by then

    store.refuse = refuse
    process = subprocess.Popen(small.argv(Part(1, 2)), env=unmeasured(), stderr=subprocess.DEVNULL)
    assert begun.wait(timeout=HANG_SECONDS)
    process.kill()
    process.wait()
    gone.set()
    store.refuse = lambda _: None
    store.settle()
    assert len(store.uploads("models")) == len(small.plan.files)
    do(small.plan, 2)
    assert len(store.uploads("models")) >= 2 * len(small.plan.files)
    publish(small.plan, into=OUT)
    assert store.tree("models", "out") == small.expected
    assert store.uploads("models") == []


def test_a_missing_part_is_named(store: Store, small: Case) -> None:
    with pytest.raises(RecipeError, match="there are no parts of s3://models/out/; make them first"):
        publish(small.plan, into=OUT)
    for number in (1, 2, 4, 5):
        apply_part(small.plan, Part(number, 5), into=OUT)
    said = "^part 3 of 5 is missing; run `lswap-core apply PLAN --part 3/5`$"
    with pytest.raises(RecipeError, match=said):
        publish(small.plan, into=OUT)
    store.client().put_object(Bucket="models", Key="out/.lswap-partial/part-3-of-5.json", Body=b'{"format":"lswap-part/1"')
    with pytest.raises(RecipeError, match=said):
        publish(small.plan, into=OUT)
    assert apply_part(small.plan, Part(3, 5), into=OUT).anew
    assert not apply_part(small.plan, Part(3, 5), into=OUT).anew
    assert apply_part(small.plan, Part(3, 5), into=OUT, restart=True).anew
    publish(small.plan, into=OUT)
    assert store.tree("models", "out") == small.expected


def test_a_damaged_agreement_is_never_believed() -> None:
    """Cut short, or with one byte changed."""
    rng = random.Random(7)
    terms, alike = Terms("ab", 3, "auto"), {"model.safetensors": ("math", "m.safetensors")}
    origins = {("math", "m.safetensors"): ("s3://models/math/m.safetensors", '"1"')}
    state = SharedState(terms, "auto", origins, alike, {"model.safetensors": "1"})  # type: ignore[arg-type]
    whole = state.to_json()
    assert SharedState.from_json(whole, path="state.json") == state
    for _ in range(200):
        raw = bytearray(whole)
        if rng.random() < 0.5:
            raw = raw[: rng.randrange(len(raw) - 1)]
        else:
            raw[rng.randrange(len(raw) - 1)] ^= 1 << rng.randrange(7)
        with pytest.raises(FormatError, match="state.json"):
            SharedState.from_json(bytes(raw), path="state.json")


def test_parts_that_do_not_go_together(store: Store, small: Case) -> None:
    apply_part(small.plan, Part(1, 3), into=OUT)
    before = store.tree("models", "out")
    math, lang = (open_checkpoint(path, role=role) for role, path in (("math", small.pair.math), ("lang", small.pair.lang)))
    other = lay_out(LayerSwap(bottom=1).draft(math=math, lang=lang))
    refused: list[tuple[Plan, Part, WriteOptions, str]] = [
        (other, Part(2, 3), WriteOptions(), "of another plan, not of this one; finish that first, or discard it with --restart"),
        (small.plan, Part(2, 4), WriteOptions(), "divided into 3 parts, not into 4"),
        (small.plan, Part(2, 3), WriteOptions(digest="xxh3"), "begun with --digest auto, not with --digest xxh3"),
        (small.plan, Part(2, 3), WriteOptions(copy_method="read_write"), "begun with --copy-method auto, not"),
        (small.plan, Part(2, 3), WriteOptions(digest="sha256"), "--digest sha256: nobody sees the bytes"),
    ]
    for plan, part, options, said in refused:
        with pytest.raises(RecipeError, match=said):
            apply_part(plan, part, into=OUT, options=options, restart=True)
    with pytest.raises(RecipeError, match="of another plan"):
        publish(other, into=OUT)
    assert store.tree("models", "out") == before


@pytest.mark.parametrize("missing", [(), (2,), (1, 2, 3)])
def test_one_process_goes_on_with_what_workers_have_begun(store: Store, case: Case, missing: tuple[int, ...]) -> None:
    """It does the parts that are not done, and no other; then it publishes."""
    for number in (1, 2, 3):
        if number not in missing:
            apply_part(case.plan, Part(number, 3), into=OUT)
    if len(missing) == 3:  # one was cut off before it was done
        fail_on(store, case.plan.files[1].name)
        with pytest.raises(SourceError, match="too busy"):
            apply_part(case.plan, Part(3, 3), into=OUT)
        store.refuse = lambda _: None
    before = store.sent_bytes("models", "out")
    traffic = Traffic()
    execute(case.plan, into=OUT, traffic=traffic)
    assert store.tree("models", "out") == case.expected
    assert store.uploads("models") == []
    if missing == (1, 2, 3):
        assert store.sent_bytes("models", "out") == before + sum(map(len, case.expected.values()))
    else:
        assert before > 10 * MIB
        assert traffic.bytes_by_method["resume"] > 10 * MIB
        assert store.sent_bytes("models", "out") == sum(map(len, case.expected.values()))


def fail_on(store: Store, ending: str) -> None:
    """Refuse every upload part of a file, for good."""

    def refuse(environ: Environ) -> Refusal | None:
        sends = "partNumber" in environ["QUERY_STRING"] and environ["PATH_INFO"].endswith(ending)
        return ("503 Slow Down", "SlowDown") if sends else None

    store.refuse = refuse


def test_what_one_process_sent_before_it_failed_to_publish_is_a_part(store: Store, small: Case) -> None:
    store.refuse = lambda e: ("403 Forbidden", "AccessDenied") if e["PATH_INFO"].endswith("lswap_manifest.json") else None
    with pytest.raises(SourceError, match="may not"):
        execute(small.plan, into=OUT)
    store.refuse = lambda _: None
    assert not apply_part(small.plan, Part(1, 1), into=OUT).anew
    publish(small.plan, into=OUT)
    assert store.tree("models", "out") == small.expected
    assert store.uploads("models") == []


def test_another_number_of_parts_is_refused_and_restart_gives_all_up(store: Store, small: Case) -> None:
    experts = {"math": small.pair.math, "lang": small.pair.lang}
    do(small.plan, 2)
    merge(LayerSwap(bottom=1), **experts, into=OUT, restart=True)  # type: ignore[arg-type]
    assert store.uploads("models") == []
    assert not any(name.startswith(".lswap-partial") for name in store.tree("models", "out"))
    with pytest.raises(RecipeError, match=r"s3://models/out/ is not empty \("):
        apply_part(small.plan, Part(1, 2), into=OUT)
    fail_on(store, "model-00003-of-00003.safetensors")
    with pytest.raises(SourceError, match="too busy"):
        execute(small.plan, into="s3://models/other", workers=1)
    store.refuse = lambda _: None
    with pytest.raises(RecipeError, match="divided into 1 parts, not into 2"):
        apply_part(small.plan, Part(1, 2), into="s3://models/other")


def abort_one(store: Store, ending: str) -> None:
    """What a lifecycle rule does, and what S3 says afterwards to who sends a part; moto fails there."""
    client, gone = store.client(), set()
    for upload in client.list_multipart_uploads(Bucket="models")["Uploads"]:
        if upload["Key"].endswith(ending):
            client.abort_multipart_upload(Bucket="models", Key=upload["Key"], UploadId=upload["UploadId"])
            gone.add(upload["UploadId"])

    def refuse(environ: Environ) -> Refusal | None:
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        return ("404 Not Found", "NoSuchUpload") if "partNumber" in query and query["uploadId"] in gone else None

    store.refuse = refuse


def test_an_upload_that_the_store_lost_is_begun_anew(store: Store, small: Case) -> None:
    """Found by a worker, and by whoever publishes: the parts that had bytes in it are done again, the others are not."""
    apply_part(small.plan, Part(1, 3), into=OUT)
    abort_one(store, small.plan.files[-1].name)
    with pytest.raises(SourceError, match="the store no longer has its upload, as where a lifecycle rule aborts"):
        apply_part(small.plan, Part(3, 3), into=OUT)
    for number in (2, 3):
        apply_part(small.plan, Part(number, 3), into=OUT)
    assert not apply_part(small.plan, Part(1, 3), into=OUT).anew
    abort_one(store, small.plan.files[0].name)
    said = "no longer has its upload.*; part 1 of 3 is missing; run `lswap-core apply PLAN --part 1/3`"
    with pytest.raises(RecipeError, match=said):
        publish(small.plan, into=OUT)
    assert apply_part(small.plan, Part(1, 3), into=OUT).anew
    publish(small.plan, into=OUT)
    assert store.tree("models", "out") == small.expected
    assert store.uploads("models") == []


@pytest.mark.parametrize("when", ["between two runs", "while it sends"])
def test_a_lost_upload_costs_one_process_no_other(store: Store, small: Case, when: str) -> None:
    first, second, third = (file.name for file in small.plan.files)

    def refuse(environ: Environ) -> Refusal | None:
        if "partNumber" not in environ["QUERY_STRING"] or third not in environ["PATH_INFO"]:
            return None
        if when == "between two runs":
            return "503 Slow Down", "SlowDown"
        abort_one(store, third)
        return "404 Not Found", "NoSuchUpload"

    store.refuse = refuse
    with pytest.raises(SourceError, match="too busy|another is begun"):
        execute(small.plan, into=OUT, workers=1)
    if when == "between two runs":
        abort_one(store, second)
    store.refuse = lambda _: None
    traffic = Traffic()
    execute(small.plan, into=OUT, traffic=traffic)
    assert store.tree("models", "out") == small.expected
    assert store.uploads("models") == []
    kept = [first] if when == "between two runs" else [first, second]
    assert traffic.bytes_by_method["resume"] == sum(step.size_bytes for step in small.plan.steps if step.file in kept)


def test_bytes_that_are_not_those_that_a_part_sent_are_never_published(store: Store, small: Case) -> None:
    do(small.plan, 3)
    client, file = store.client(), small.plan.files[1]
    (upload,) = [u for u in client.list_multipart_uploads(Bucket="models")["Uploads"] if u["Key"].endswith(file.name)]
    at = {"Bucket": "models", "Key": upload["Key"], "UploadId": upload["UploadId"]}
    client.upload_part(**at, PartNumber=1, Body=bytes(file.header.file_size))
    with pytest.raises(RecipeError, match=f"{file.name}: the store does not have what its parts sent.*part 3 of 3 is missing"):
        publish(small.plan, into=OUT)
    assert [apply_part(small.plan, Part(number, 3), into=OUT).anew for number in (1, 2, 3)] == [False, False, True]
    publish(small.plan, into=OUT)
    assert store.tree("models", "out") == small.expected


@pytest.mark.parametrize("failing", ["model-00002-of-00003.safetensors", "state.json"])
def test_publishing_cut_off_goes_on(store: Store, small: Case, failing: str) -> None:
    do(small.plan, 2)

    def refuse(environ: Environ) -> Refusal | None:
        hit = environ["REQUEST_METHOD"] in ("POST", "PUT", "DELETE") and environ["PATH_INFO"].endswith(failing)
        return ("403 Forbidden", "AccessDenied") if hit else None

    for _ in range(2):
        store.refuse = refuse
        with pytest.raises((SourceError, RecipeError)):
            publish(small.plan, into=OUT)
        store.refuse = lambda _: None
        assert ("lswap_manifest.json" in store.tree("models", "out")) == (failing == "state.json")
    if failing == "state.json":
        with pytest.raises(RecipeError, match="is published already"):
            publish(small.plan, into=OUT)
    else:
        publish(small.plan, into=OUT)
    assert store.tree("models", "out") == small.expected
    assert store.uploads("models") == []


def test_two_that_publish_at_once(store: Store, small: Case) -> None:
    """One does at least; the other is told so, or finds the same done."""
    do(small.plan, 2)
    argv = [sys.executable, "-m", "lswap_core", "publish", str(small.file), "--out", OUT, "--quiet"]
    both = [subprocess.Popen(argv, env=unmeasured(), stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=HANG_SECONDS)[1] for process in both]
    assert min(process.returncode for process in both) == 0, said
    assert all(process.returncode in (0, 4, 7) for process in both), said
    assert store.tree("models", "out") == small.expected
    assert store.uploads("models") == []


def test_workers_that_are_at_it_when_all_is_published_leave_nothing(store: Store, small: Case) -> None:
    """One has sent all of its part by then, the other goes on sending."""

    def send(sink: S3PartSink) -> list[StepRecord]:
        evaluator = Evaluator(source, kernels)
        return executor.run(small.plan, source, sink, evaluator, progress=Silence(), workers=1, steps=sink.steps)

    with open_local(small.plan) as source:
        first, second = (S3PartSink(OUT, small.plan, Part(number, 2), source) for number in (1, 2))
        records = send(first)
        do(small.plan, 2)
        publish(small.plan, into=OUT)
        first.seal(records)
        store.refuse = lambda e: ("404 Not Found", "NoSuchUpload") if "partNumber" in e["QUERY_STRING"] else None
        with pytest.raises(RecipeError, match="was published or given up by another process meanwhile"):
            send(second)
    assert store.tree("models", "out") == small.expected
    assert store.uploads("models") == []


def test_parts_of_one_size_where_all_is_sent_on_request(store: Store, case: Case) -> None:
    """For stores that want that; a worker has whole shards then."""
    do(case.plan, 2, options=WriteOptions(copy_method="read_write"))
    sizes: dict[str, list[int]] = {}
    for upload in store.client().list_multipart_uploads(Bucket="models")["Uploads"]:
        listed = store.client().list_parts(Bucket="models", Key=upload["Key"], UploadId=upload["UploadId"])["Parts"]
        sizes[upload["Key"]] = [part["Size"] for part in listed]
    assert all(set(of[:-1]) == {16 * MIB} for of in sizes.values())
    publish(case.plan, into=OUT)
    assert store.tree("models", "out") == case.expected


def test_the_command_line_tells_what_is_next(store: Store, small: Case, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in ("SLURM_PROCID", "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["apply", str(small.file), "--out", OUT, "--part", "auto"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"- when all 2 are: lswap-core publish {small.file} --out {OUT}"
    assert main(["publish", str(small.file), "--out", OUT]) == 0
    assert main(["verify", OUT, "--quiet"]) == 0
    assert store.tree("models", "out") == small.expected


def test_places_that_are_none_are_refused(store: Store, small: Case) -> None:
    store.client().put_object(Bucket="models", Key="out/mine.txt", Body=b"mine")
    for into, said in {
        OUT: r"s3://models/out/ is not empty \(mine.txt\)",
        "gs://models/out": "gs://models/out: parts are built in a directory that all workers share, or in an s3:// store",
        "az://models/out": "az://models/out: parts are built in a directory",
        "s3://models": "does not name a place of its own",
    }.items():
        with pytest.raises(RecipeError, match=said):
            apply_part(small.plan, Part(1, 2), into=into)
        with pytest.raises(RecipeError, match=said):
            publish(small.plan, into=into)
    assert store.tree("models", "out") == {"mine.txt": b"mine"}
    assert store.uploads("models") == []

"""Outputs in object stores: real boto3 against servers on the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from lswap_core import LayerSwap, RecipeError, StalePlanError, kernels, lay_out, merge, open_checkpoint
from lswap_core.checkpoint.catalogue import Role
from lswap_core.cli.main import main
from lswap_core.engine import executor
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import FormatError, SourceError
from lswap_core.io.ports import Silence
from lswap_core.io.traffic import Traffic
from lswap_core.options import WriteOptions
from lswap_core.plan.manifest import StepRecord
from lswap_core.plan.plan import Plan
from lswap_core.recipe.expressions import Blend
from lswap_core.sinks.s3.sink import S3Sink
from lswap_core.sources.local import LocalSource
from tests.buckets import (
    KEYS,
    BucketSource,
    Environ,
    Refusal,
    Store,
    empty,
    large_pair,
    localbucket_store,
    moto_store,
    use,
)
from tests.build import HANG_SECONDS, Pair, llama_pair, tree, unmeasured

SWAP = LayerSwap(bottom=2, top=1, transition=1)
FLAGS = ["--bottom", "2", "--top", "1", "--transition", "1"]
MIB = 2**20
KEPT = {".lswap-partial/state.json", ".lswap-partial/unfinished/part-1-of-1.json"}
"""What one process that was cut off leaves, beside its uploads."""


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with moto_store() as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The server, with nothing in it but an empty bucket `models`."""
    use(server, monkeypatch, tmp_path / "none")
    server.client().create_bucket(Bucket="models")
    server.uploaded.clear()
    server.calls.clear()
    yield server
    server.refuse, server.before = (lambda _: None), (lambda _: None)
    empty(server, "models")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return large_pair(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def experts(server: Store, pair: Pair) -> dict[Role, str]:
    """The pair in a bucket of its own."""
    server.client().create_bucket(Bucket="experts")
    server.load("experts", "math", pair.math)
    server.load("experts", "lang", pair.lang)
    return {"math": "s3://experts/math", "lang": "s3://experts/lang"}


@pytest.fixture(scope="module")
def expected(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a merge to a disk gives."""
    out = tmp_path_factory.mktemp("local") / "out"
    merge(SWAP, math=pair.math, lang=pair.lang, into=out)
    return tree(out)


def make_plan(pair: Pair) -> Plan:
    return lay_out(SWAP.draft(math=open_checkpoint(pair.math, role="math"), lang=open_checkpoint(pair.lang, role="lang")))


def open_local(plan: Plan) -> LocalSource:
    return LocalSource({source.role: open_checkpoint(source.location, role=source.role) for source in plan.sources})


def within(store: Store, experts: dict[Role, str], plan: Plan, into: str, **how: Any) -> tuple[list[StepRecord], Traffic, S3Sink]:
    """Merge experts that are in the store."""
    source = BucketSource(store.client(), experts)
    traffic = Traffic()
    with closing(S3Sink(into, traffic=traffic, **how)) as sink:
        records = executor.run(plan, source, sink, Evaluator(source, kernels), progress=Silence(), workers=3)
        sink.publish()
    return records, traffic, sink


def shards(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


def seams(plan: Plan) -> int:
    """Places in the files where bytes beside each other come from different places; the ends of headers are such places."""
    kinds = [
        (step.file, type(step.made_of).__name__, "" if isinstance(step.made_of, Blend) else step.made_of.refs[0].role)
        for step in plan.steps
    ]
    return len(plan.files) + sum(one != two for one, two in pairwise(kinds))


def test_a_merge_into_a_bucket_is_that_on_a_disk(store: Store, pair: Pair, expected: dict[str, bytes]) -> None:
    merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/a/out")
    assert store.tree("models", "a/out") == expected
    assert store.uploads("models") == []
    puts = [path for method, path, _ in store.calls if method == "PUT" and ".lswap-partial" not in path]
    assert puts[-1] == "/models/a/out/lswap_manifest.json"
    assert puts[-2] == "/models/a/out/model.safetensors.index.json"


def test_from_bucket_to_bucket_what_is_not_blended_hardly_travels(
    store: Store, experts: dict[Role, str], pair: Pair, expected: dict[str, bytes]
) -> None:
    plan = make_plan(pair)
    records, traffic, sink = within(store, experts, plan, "s3://models/out")
    assert store.tree("models", "out") == shards(expected)
    assert store.uploads("models") == []
    blended = sum(step.size_bytes for step in plan.steps if isinstance(step.made_of, Blend))
    headers = sum(file.header.data_begin for file in plan.files)
    sent = store.sent_bytes("models", "out")
    assert blended <= sent <= blended + headers + 5 * MIB * seams(plan)
    assert sent < plan.write_bytes / 2
    assert traffic.bytes_by_method["splice"] == sum(map(len, shards(expected).values())) - sent
    assert sink.most_held_bytes <= 16 * MIB * 5
    spliced = [record for record in records if record.digest is None]
    assert spliced
    said = json.loads(expected["lswap_manifest.json"])["tensors"]
    assert all(said[record.name]["digest"] == record.digest for record in records if record.digest is not None)


def test_the_command_line_merges_from_bucket_to_bucket_and_verifies(
    store: Store, experts: dict[Role, str], pair: Pair, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    sources = ["--math", experts["math"], "--lang", experts["lang"]]
    assert main(["merge", *sources, *FLAGS, "--out", "s3://models/out"]) == 0
    assert "copied within the store" in capsys.readouterr().out
    found = store.tree("models", "out")
    assert {name: found[name] for name in shards(found)} == shards(expected)
    assert found.keys() == expected.keys()
    assert main(["verify", "s3://models/out"]) == 0
    assert main(["verify", "s3://models/out", *sources]) == 0
    assert "21 tensors, all as its manifest says, and as math and lang give them" in capsys.readouterr().out
    damaged = bytearray(found["model-00001-of-00002.safetensors"])
    damaged[-1] ^= 1
    store.client().put_object(Bucket="models", Key="out/model-00001-of-00002.safetensors", Body=bytes(damaged))
    store.client().put_object(Bucket="models", Key="out/pytorch_model.bin", Body=b"stray")
    assert main(["verify", "s3://models/out"]) == 6
    said = capsys.readouterr().err
    assert "pytorch_model.bin" in said
    assert "model-00001-of-00002.safetensors" in said


def test_a_shard_that_is_its_source_is_copied_by_the_store_alone(store: Store, experts: dict[Role, str], pair: Pair) -> None:
    plan = lay_out(LayerSwap().draft(math=open_checkpoint(pair.math, role="math"), lang=open_checkpoint(pair.lang, role="lang")))
    within(store, experts, plan, "s3://models/out")
    assert store.tree("models", "out") == shards(tree(pair.math))
    assert store.sent_bytes("models", "out") == 0


def test_every_digest_is_taken_where_it_is_asked_for(
    store: Store, experts: dict[Role, str], pair: Pair, expected: dict[str, bytes]
) -> None:
    records, traffic, _ = within(store, experts, make_plan(pair), "s3://models/out", options=WriteOptions(digest="xxh3"))
    said = json.loads(expected["lswap_manifest.json"])["tensors"]
    assert {record.name: record.digest for record in records} == {name: entry["digest"] for name, entry in said.items()}
    assert traffic.bytes_by_method["splice"] > 0


def test_a_store_that_copies_no_parts_is_sent_everything(
    store: Store, experts: dict[Role, str], pair: Pair, expected: dict[str, bytes]
) -> None:
    store.refuse = lambda e: ("501 Not Implemented", "NotImplemented") if "HTTP_X_AMZ_COPY_SOURCE" in e else None
    _, traffic, _ = within(store, experts, make_plan(pair), "s3://models/out")
    assert store.tree("models", "out") == shards(expected)
    assert "splice" not in traffic.bytes_by_method


def test_a_source_that_changes_while_it_is_copied_is_a_stale_plan(store: Store, pair: Pair) -> None:
    store.load("models", "math", pair.math)
    store.load("models", "lang", pair.lang)
    name = sorted(shards(tree(pair.lang)))[1]

    def meddle(environ: Environ) -> None:
        if "HTTP_X_AMZ_COPY_SOURCE" in environ:
            store.before = lambda _: None
            data = bytearray((pair.lang / name).read_bytes())
            data[-1] ^= 1
            store.client().put_object(Bucket="models", Key=f"lang/{name}", Body=bytes(data))

    store.before = meddle
    with pytest.raises(StalePlanError, match=f"s3://models/lang/{name}: changed"):
        within(store, {"math": "s3://models/math", "lang": "s3://models/lang"}, make_plan(pair), "s3://models/out")
    assert all(name.startswith(".lswap-partial/") for name in store.tree("models", "out"))


def fail_after(store: Store, parts: int) -> None:
    """Refuse every part after so many, for good."""
    left = threading.Semaphore(parts)

    def refuse(environ: Environ) -> Refusal | None:
        if environ["REQUEST_METHOD"] == "PUT" and "partNumber" in environ["QUERY_STRING"] and not left.acquire(blocking=False):
            return "503 Slow Down", "SlowDown"
        return None

    store.refuse = refuse


def test_the_same_command_goes_on_from_what_was_sent(store: Store, pair: Pair, expected: dict[str, bytes]) -> None:
    fail_after(store, 3)
    with pytest.raises(SourceError, match="too busy") as raised:
        merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out", workers=1)
    assert any("the same command goes on" in note for note in raised.value.__notes__)
    assert store.tree("models", "out").keys() == KEPT
    store.refuse = lambda _: None
    sent = store.sent_bytes("models", "out")
    traffic = Traffic()
    merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out", traffic=traffic)
    assert store.tree("models", "out") == expected
    assert store.uploads("models") == []
    assert sent > 20 * MIB
    assert traffic.bytes_by_method["resume"] > 10 * MIB
    assert store.sent_bytes("models", "out") < sum(map(len, expected.values())) + MIB


def test_what_the_store_has_copied_is_not_copied_again(
    store: Store, experts: dict[Role, str], pair: Pair, expected: dict[str, bytes]
) -> None:
    plan = make_plan(pair)
    fail_after(store, 4)
    with pytest.raises(SourceError, match="too busy"):
        within(store, experts, plan, "s3://models/out")
    store.refuse = lambda _: None
    before = {call for call in store.calls if "partNumber" in call[2]}
    store.calls.clear()
    within(store, experts, plan, "s3://models/out")
    assert store.tree("models", "out") == shards(expected)
    again = {call for call in store.calls if "partNumber" in call[2]} & before
    assert len(before) == 4
    assert len(again) <= 3  # three threads may have been in the middle of something


@pytest.mark.parametrize("how", ["gone", "other bytes"])
def test_what_the_store_has_lost_is_sent_again(store: Store, pair: Pair, expected: dict[str, bytes], how: str) -> None:
    fail_after(store, 3)
    with pytest.raises(SourceError, match="too busy"):
        merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out", workers=1)
    store.refuse = lambda _: None
    client = store.client()
    for upload in client.list_multipart_uploads(Bucket="models")["Uploads"]:
        at = {"Bucket": "models", "Key": upload["Key"], "UploadId": upload["UploadId"]}
        if how == "gone":
            client.abort_multipart_upload(**at)
        else:
            for part in client.list_parts(**at).get("Parts", ()):
                client.upload_part(**at, PartNumber=part["PartNumber"], Body=bytes(part["Size"]))
    merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out")
    assert store.tree("models", "out") == expected
    assert store.uploads("models") == []


KILLED = """
import sys
from lswap_core.sinks.s3 import sink
sink._SAVE_SECONDS = 0.0
from lswap_core.checkpoint.catalogue import Role
from lswap_core.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_shows_nothing_and_the_next_one_ends_it(store: Store, pair: Pair, expected: dict[str, bytes]) -> None:
    parts = threading.Semaphore(0)

    def slowly(environ: Environ) -> None:
        if "partNumber" in environ["QUERY_STRING"]:
            parts.release()
            time.sleep(0.1)

    store.before = slowly
    command = ["merge", "--math", str(pair.math), "--lang", str(pair.lang), *FLAGS, "--out", "s3://models/out", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *command], env=os.environ | {"PYTHONPATH": os.getcwd()})
    try:
        assert all(parts.acquire(timeout=HANG_SECONDS) for _ in range(3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    store.before = lambda _: None
    store.settle()  # what the server was told before may still be under way in it
    assert store.tree("models", "out").keys() == KEPT
    assert len(store.uploads("models")) == 2
    stray = store.client().create_multipart_upload(Bucket="models", Key="out/model-00001-of-00002.safetensors")
    assert stray["UploadId"]
    traffic = Traffic()
    merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out", traffic=traffic)
    assert store.tree("models", "out") == expected
    assert store.uploads("models") == []
    assert traffic.bytes_by_method.get("resume", 0) > 0


def test_two_that_begin_at_once_share_the_uploads_of_the_first(store: Store, pair: Pair, expected: dict[str, bytes]) -> None:
    """The second begins uploads, finds that the first was faster, and gives its own up. Both send; both may publish."""
    plan = make_plan(pair)
    with (
        open_local(plan) as source,
        closing(S3Sink("s3://models/out")) as first,
        closing(S3Sink("s3://models/out")) as other,
    ):

        def claim(environ: Environ) -> None:
            if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("state.json"):
                store.before = lambda _: None
                first.begin(plan, source)

        store.before = claim
        for sink in (other, first):
            executor.run(plan, source, sink, Evaluator(source, kernels), progress=Silence(), workers=2)
            assert len(store.uploads("models")) == len(plan.files)
            sink.put("lswap_manifest.json", b"{}")
        first.publish()
        assert store.tree("models", "out") == shards(expected) | {"lswap_manifest.json": b"{}"}
        other.publish()
    assert store.tree("models", "out") == shards(expected) | {"lswap_manifest.json": b"{}"}
    assert store.uploads("models") == []


def test_two_processes_at_once_make_one_output(store: Store, pair: Pair, expected: dict[str, bytes]) -> None:
    """One does at least; the other finds the same done, or is told so."""
    argv = ["merge", "--math", str(pair.math), "--lang", str(pair.lang), *FLAGS, "--out", "s3://models/out", "--quiet"]
    start = [sys.executable, "-m", "lswap_core", *argv]
    both = [subprocess.Popen(start, env=unmeasured(), stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert min(process.returncode for process in both) == 0, said
    assert all(process.returncode in (0, 4, 7) for process in both), said
    assert store.tree("models", "out") == expected
    assert store.uploads("models") == []


def test_what_another_version_left_is_refused_with_advice_and_given_up_on_request(
    store: Store, pair: Pair, expected: dict[str, bytes]
) -> None:
    state = b'{"format":"lswap-upload/1","plan":"xxh3:0","digest":"auto","publishing":false,"uploads":{},"steps":{}}'
    store.client().put_object(Bucket="models", Key="out/.lswap-partial/state.json", Body=state)
    store.client().create_multipart_upload(Bucket="models", Key="out/model-00001-of-00002.safetensors")
    with pytest.raises(FormatError, match="lswap-upload/1.*discard it with --restart"):
        merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out")
    merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out", restart=True)
    assert store.tree("models", "out") == expected
    assert store.uploads("models") == []


def test_memory_does_not_grow_with_the_number_of_shards(store: Store, tmp_path: Path) -> None:
    pair = llama_pair(tmp_path, layers=20, shards=30)
    plan = make_plan(pair)
    with open_local(plan) as source, closing(S3Sink("s3://models/out")) as sink:
        executor.run(plan, source, sink, Evaluator(source, kernels), progress=Silence(), workers=1)
        sink.publish()
        most_bytes = sink.most_held_bytes
    assert most_bytes < 3 * max(file.header.file_size for file in plan.files)


def test_a_dry_run_refuses_what_is_there(store: Store, pair: Pair) -> None:
    store.client().put_object(Bucket="models", Key="out/mine.txt", Body=b"mine")
    assert (
        main(["merge", "--math", str(pair.math), "--lang", str(pair.lang), *FLAGS, "--out", "s3://models/out", "--dry-run"]) == 4
    )


@pytest.mark.parametrize("into", ["s3://models", "s3://", "s3:///x", "s3://models//x", "s3://models/../x", "ftp://models/x"])
def test_places_that_are_none_are_refused(store: Store, pair: Pair, into: str) -> None:
    with pytest.raises(RecipeError, match="--out|expected"):
        merge(SWAP, math=pair.math, lang=pair.lang, into=into)


REFUSALS = {
    "InvalidAccessKeyId": ("403 Forbidden", "renew"),
    "SignatureDoesNotMatch": ("403 Forbidden", "renew"),
    "ExpiredToken": ("400 Bad Request", "renew"),
    "AccessDenied": ("403 Forbidden", "ask for leave"),
    "RequestTimeTooSkewed": ("403 Forbidden", "clock"),
    "SlowDown": ("503 Slow Down", "goes on later"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_what_a_store_refuses_is_one_clear_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    pair = llama_pair(tmp_path)
    status, advice = REFUSALS[code]
    store.refuse = lambda _: (status, code)
    one_line(pair, "s3://models/out", advice, capsys)


def test_a_store_that_wants_parts_of_one_size(
    store: Store, experts: dict[Role, str], pair: Pair, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """As Cloudflare R2 does, which tells of it when an upload is completed."""
    sizes: dict[str, dict[int, int]] = {}

    def refuse(environ: Environ) -> Refusal | None:
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        if "partNumber" in query:
            length = int(environ["CONTENT_LENGTH"] or 0)
            if "HTTP_X_AMZ_COPY_SOURCE_RANGE" in environ:
                begin, _, last = environ["HTTP_X_AMZ_COPY_SOURCE_RANGE"].removeprefix("bytes=").partition("-")
                length = int(last) + 1 - int(begin)
            sizes.setdefault(query["uploadId"], {})[int(query["partNumber"])] = length
        elif environ["REQUEST_METHOD"] == "POST" and "uploadId" in query:
            before_the_last = [size for _, size in sorted(sizes[query["uploadId"]].items())][:-1]
            if len(set(before_the_last)) > 1:
                return "400 Bad Request", "InvalidPart", "All non-trailing parts must have the same length."
        return None

    store.refuse = refuse
    flags = ["--math", experts["math"], "--lang", experts["lang"], *FLAGS, "--out", "s3://models/out"]
    assert main(["merge", *flags]) == 7
    assert "use --copy-method read_write --restart" in capsys.readouterr().err
    sizes.clear()
    assert main(["merge", *flags, "--copy-method", "read_write", "--restart"]) == 0
    assert shards(store.tree("models", "out")) == shards(expected)


def test_a_bucket_that_is_not_there(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(llama_pair(tmp_path), "s3://absent/out", "there is no bucket 'absent'", capsys)


def test_a_port_that_nobody_listens_on(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), None) as closed:  # type: ignore[arg-type]
        port = closed.server_port
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    one_line(llama_pair(tmp_path), "s3://models/out", "AWS_ENDPOINT_URL", capsys)


def test_no_credentials(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    one_line(llama_pair(tmp_path), "s3://models/out", "AWS_ACCESS_KEY_ID", capsys)


def test_a_proxy_that_is_not_there(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), None) as closed:  # type: ignore[arg-type]
        port = closed.server_port
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    one_line(llama_pair(tmp_path), "s3://models/out", "proxy", capsys)


def one_line(pair: Pair, into: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The merge ends with exit status 7 and one line that gives the advice."""
    assert main(["merge", "--math", str(pair.math), "--lang", str(pair.lang), *FLAGS, "--out", into]) == 7
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert advice in said
    assert "Traceback" not in said


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A server that knows fewer calls."""
    with localbucket_store(tmp_path / "buckets") as other:
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        other.client().create_bucket(Bucket="models")
        yield other


def test_a_second_server_copies_parts_too(second: Store, pair: Pair, expected: dict[str, bytes]) -> None:
    second.load("models", "math", pair.math)
    second.load("models", "lang", pair.lang)
    _, traffic, _ = within(second, {"math": "s3://models/math", "lang": "s3://models/lang"}, make_plan(pair), "s3://models/out")
    assert second.tree("models", "out") == shards(expected)
    assert traffic.bytes_by_method["splice"] > 20 * MIB


@pytest.mark.parametrize(("package", "into"), [("boto3", "s3://models/out"), ("obstore", "gs://models/out")])
def test_the_extra_that_is_missing_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, into: str
) -> None:
    pair = llama_pair(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError, match=r"pip install lswap-core\[stores\]"):
        merge(SWAP, math=pair.math, lang=pair.lang, into=into)


def test_an_interrupted_run_is_kept(store: Store, pair: Pair, expected: dict[str, bytes]) -> None:
    parts = threading.Semaphore(0)

    def slowly(environ: Environ) -> None:
        if "partNumber" in environ["QUERY_STRING"]:
            parts.release()
            time.sleep(0.1)

    store.before = slowly
    command = ["merge", "--math", str(pair.math), "--lang", str(pair.lang), *FLAGS, "--out", "s3://models/out", "--workers", "1"]
    program = [sys.executable, "-m", "lswap_core", *command]
    process = subprocess.Popen(program, env=unmeasured() | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.PIPE, text=True)
    assert all(parts.acquire(timeout=HANG_SECONDS) for _ in range(3))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=HANG_SECONDS)
    store.before = lambda _: None
    assert process.returncode == 130
    assert "s3://models/out/.lswap-partial/state.json; the same command goes on" in said
    traffic = Traffic()
    merge(SWAP, math=pair.math, lang=pair.lang, into="s3://models/out", traffic=traffic)
    assert store.tree("models", "out") == expected
    assert traffic.bytes_by_method["resume"] > 0


def test_bytes_of_a_source_that_changed_meanwhile_are_not_kept(store: Store, tmp_path: Path) -> None:
    pair = large_pair(tmp_path)
    swap = LayerSwap(bottom=6)
    merge(swap, math=pair.math, lang=pair.lang, into=tmp_path / "out")
    victim = pair.lang / "model-00001-of-00002.safetensors"
    data, times = victim.read_bytes(), victim.stat()

    def change(environ: Environ) -> None:
        if "partNumber=1" in environ["QUERY_STRING"]:
            store.before = lambda _: None
            with victim.open("r+b") as file:
                file.seek(-MIB, os.SEEK_END)
                file.write(bytes(MIB))

    store.before = change
    with pytest.raises(StalePlanError, match="changed after it was planned"):
        merge(swap, math=pair.math, lang=pair.lang, into="s3://models/out", workers=1)
    assert any("partNumber=2" in query for _, path, query in store.calls if path.endswith(victim.name))
    victim.write_bytes(data)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    merge(swap, math=pair.math, lang=pair.lang, into="s3://models/out")
    assert store.tree("models", "out") == tree(tmp_path / "out")

"""Faults of a real server on the loopback: retried where that can help, one clear line where it cannot, nothing twice."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lswap_core.errors import RecipeError, SourceError
from lswap_eval.cli import main
from lswap_eval.generate.protocol import Completion, Decoding
from lswap_eval.generate.runner import Task, Unwatched, generate, make_header
from lswap_eval.generate.server import HttpGenerator
from lswap_eval.log import Log, read_log
from lswap_eval.mgsm.problems import ProblemSet
from lswap_eval.mgsm.prompts import Prompt

Fault = Callable[["_Handler"], None]
HANG_SECONDS = 900.0
"""What no request takes on any machine, however busy."""


class _Handler(BaseHTTPRequestHandler):
    """Answers a prompt with its words reversed, after the faults that are due for it."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked[prompt] += 1
            self.server.bodies.append(body)
            self.server.keys.add(self.headers.get("Authorization"))
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
            fault = self.server.faults[prompt].pop(0) if self.server.faults.get(prompt) else None
        if self.server.together is not None:
            self.server.together.wait(HANG_SECONDS)
        with self.server.lock:
            self.server.under_way -= 1
        if fault is not None:
            fault(self)
            return
        text = " ".join(reversed(prompt.split()))
        choice = {"text": text} if "prompt" in body else {"message": {"content": text}}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        self.reply(200, {"choices": [{**choice, "finish_reason": "length"}], "usage": usage})

    def reply(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.lock = threading.Lock()
        self.faults: dict[str, list[Fault]] = {}
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.under_way = self.most_under_way = 0
        self.together: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def status(code: int, **headers: str) -> Fault:
    return lambda handler: handler.reply(code, {"error": "not\nnow"}, **headers)


def slow(handler: _Handler) -> None:
    """No answer until the client has had enough, and hangs up."""
    handler.connection.recv(1)
    handler.close_connection = True


def cut_in_the_head(handler: _Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 20")
    handler.close_connection = True


def cut_in_the_body(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"text": "half an ans')
    handler.close_connection = True


def reset(handler: _Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()
    handler.close_connection = True
    handler.wfile = open("/dev/null", "wb")  # noqa: SIM115 (for the handler's own flush)


def no_json(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "6")
    handler.end_headers()
    handler.wfile.write(b"<html>")


FAULTS: dict[str, Fault] = {
    "429": status(429, Retry_After="7"),
    "500": status(500),
    "503": status(503),
    "slow": slow,
    "cut in the head": cut_in_the_head,
    "cut in the body": cut_in_the_body,
    "reset": reset,
    "no json": no_json,
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def open_generator(server: Server, waits: list[float] | None = None, **options: Any) -> HttpGenerator:
    kept = [] if waits is None else waits
    return HttpGenerator(server.url, Decoding(max_new_tokens=9), **{"timeout_s": HANG_SECONDS, "sleep": kept.append, **options})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_retried_and_recorded_once(fault: str, server: Server, tmp_path: Path) -> None:
    prompts = [f"{number} little ducks" for number in range(6)]
    server.faults = {prompts[1]: [FAULTS[fault]], prompts[4]: [FAULTS[fault]] * 3}
    tasks = [Task("en", number, 0, Prompt(prompt, None), ()) for number, prompt in enumerate(prompts)]
    # The client has to have enough of a slow answer soon; on a busy machine, it may of others as well.
    impatient = {"timeout_s": 0.2, "attempts": 1000} if fault == "slow" else {}
    with open_generator(server, **impatient) as generator:
        header = make_header({"identity": "ab"}, generator, {}, ProblemSet({}, {}), batch_size=4)
        with Log.open(tmp_path / "log", header) as log:
            generate(tasks, generator, log, batch_size=4, seed=0, watcher=Unwatched())
    _, records = read_log(tmp_path / "log")
    assert {record.problem: record.output for record in records} == {n: f"ducks little {n}" for n in range(6)}
    assert len(records) == 6
    asked, least = [server.asked[prompt] for prompt in prompts], [1, 2, 1, 1, 4, 1]
    assert all(a >= b for a, b in zip(asked, least, strict=True)) if impatient else asked == least
    assert {(record.finish_reason, record.prompt_tokens, record.completion_tokens) for record in records} == {("length", 3, 3)}


def test_a_failed_run_is_resumed_and_asks_only_for_what_is_missing(server: Server, tmp_path: Path) -> None:
    prompts = [f"{number} ducks" for number in range(6)]
    server.faults = {prompts[4]: [status(400)]}
    tasks = [Task("en", number, 0, Prompt(prompt, None), ()) for number, prompt in enumerate(prompts)]
    with open_generator(server) as generator:
        header = make_header({"identity": "ab"}, generator, {}, ProblemSet({}, {}), batch_size=2)
        with Log.open(tmp_path / "log", header) as log, pytest.raises(SourceError, match="answered 400: .*not"):
            generate(tasks, generator, log, batch_size=2, seed=0, watcher=Unwatched())
        with Log.open(tmp_path / "log", header, resume=True) as log:
            assert sorted(key[1] for key in log.done) == [0, 1, 2, 3]
            generate(tasks, generator, log, batch_size=2, seed=0, watcher=Unwatched())
    assert sorted(record.problem for record in read_log(tmp_path / "log")[1]) == [0, 1, 2, 3, 4, 5]
    assert [server.asked[prompt] for prompt in prompts[:4]] == [1, 1, 1, 1]


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("0", 0.0), ("100000", 60.0), (formatdate(0, usegmt=True), 0.0)])
def test_a_server_that_names_a_time_is_given_it(asked: str, waited: float, server: Server) -> None:
    server.faults = {"a b": [status(429, Retry_After=asked)]}
    waits: list[float] = []
    with open_generator(server, waits) as generator:
        assert generator.complete([Prompt("a b", None)], stop=[], seed=0)[0].text == "b a"
    assert waits == [waited]


def test_waits_grow_and_end(server: Server) -> None:
    server.faults = {"a": [status(500)] * 20}
    waits: list[float] = []
    with (
        open_generator(server, waits, attempts=9) as generator,
        pytest.raises(SourceError, match="answered 500.*after 9 attempts"),
    ):
        generator.complete([Prompt("a", None)], stop=[], seed=0)
    assert server.asked["a"] == 9
    assert all(0.25 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits[:7]))
    assert 30 <= waits[7] <= 60


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_refusal_for_good_is_not_retried(code: int, server: Server) -> None:
    server.faults = {"a": [status(code)]}
    with open_generator(server) as generator, pytest.raises(SourceError, match=f"completions answered {code}"):
        generator.complete([Prompt("a", None)], stop=[], seed=0)
    assert server.asked["a"] == 1


@pytest.fixture
def silent_port() -> Iterator[int]:
    """At which nobody listens. It is held, so that no other process gets it; a server started here can share it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_server_that_starts_late_is_waited_for(silent_port: int) -> None:
    tries: list[float] = []
    late: list[Server] = []

    def starting(wait_s: float) -> None:
        tries.append(wait_s)
        if len(tries) == 3:
            late.append(Server(silent_port))
            threading.Thread(target=late[0].serve_forever, args=(0.01,)).start()

    url = f"http://127.0.0.1:{silent_port}/v1"
    try:
        with HttpGenerator(url, Decoding(), model="tiny", timeout_s=HANG_SECONDS, sleep=starting) as generator:
            assert generator.complete([Prompt("a b", None)], stop=[], seed=0)[0].text == "b a"
    finally:
        for server in late:
            server.shutdown()
            server.server_close()
    assert len(tries) == 3


def test_a_server_that_is_not_there_is_one_line(silent_port: int) -> None:
    url = f"http://127.0.0.1:{silent_port}/v1"
    with pytest.raises(SourceError, match=f"{url}/models cannot be reached.*gave up after 2 attempts") as raised:
        HttpGenerator(url, Decoding(), attempts=2, sleep=lambda _: None)
    assert "\n" not in str(raised.value)
    with pytest.raises(RecipeError, match="is no address"):
        HttpGenerator("localhost:1", Decoding(), sleep=lambda _: None)


def test_requests_are_as_many_at_a_time_as_allowed_and_say_what_is_asked(server: Server) -> None:
    server.together = threading.Barrier(3)
    with open_generator(server, concurrency=3, key="secret") as generator:
        stop = ["1", "2", "3", "4", "little"]
        found = generator.complete([Prompt(f"{n} little", None) for n in range(10, 31)], stop=stop, seed=5)
        assert "secret" not in json.dumps(dict(generator.settings))
    assert [completion.text for completion in found] == [""] * 21
    assert {completion.finish_reason for completion in found} == {"stop"}
    assert server.most_under_way == 3
    assert server.keys == {"Bearer secret"}
    assert server.bodies[0].items() >= {"model": "tiny", "max_tokens": 9, "temperature": 0.0, "stop": stop[:4]}.items()
    assert "seed" not in server.bodies[0]


def test_chat_goes_to_the_chat_endpoint(server: Server) -> None:
    with open_generator(server) as generator:
        found = generator.complete([Prompt(None, ({"role": "user", "content": "how many ducks"},))], stop=[], seed=0)
    assert found == [Completion("ducks many how", "length", 3, 3)]
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "how many ducks"}]


def test_an_answer_without_a_completion_is_one_line(server: Server) -> None:
    server.faults = {"a": [lambda handler: handler.reply(200, {"choices": []})]}
    with open_generator(server) as generator, pytest.raises(SourceError, match="no completion in the answer"):
        generator.complete([Prompt("a", None)], stop=[], seed=0)


def test_the_command_line_runs_on_a_server(
    server: Server, authored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asked = [
        "run",
        "--server",
        server.url,
        "--data",
        str(authored),
        "--languages",
        "sw,ja",
        "--prompt",
        "chat",
        "--exemplars",
        "1",
    ]
    asked += ["--out", str(tmp_path / "log")]
    assert main.main(asked) == 4
    assert "give --model DIR, or --server URL with --model DIR or --identity NAME" in capsys.readouterr().err
    asked += ["--identity", "org/model@0123"]
    assert main.main(asked) == 0
    header, records = read_log(tmp_path / "log")
    assert header.model["name"] == "org/model@0123"
    assert header.settings.items() >= {"generator": "http", "served_model": "tiny", "prompt": "chat", "exemplars": 1}.items()
    assert server.keys == {"Bearer secret"}
    assert "secret" not in (tmp_path / "log").read_text()
    assert {record.language for record in records} == {"sw", "ja"}
    assert len(server.bodies) == len(records)
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["user", "assistant", "user"]
    assert main.main([*asked, "--resume"]) == 0
    assert len(server.bodies) == len(records)

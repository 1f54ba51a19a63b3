from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.build import HANG_SECONDS, llama_like, normal, write_model
from tests.sources.remote.hub_server import HubServer, Repository

MATH, LANG = "acme/math", "acme/lang"
LAYERS = 16
COMMITS = {MATH: "a" * 40, LANG: "b" * 40}


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


class Command:
    """`lswap_core`, run in another process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sources.remote.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip

    def __call__(self, *argv: object, **environment: str) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"argv": list(map(str, argv)), "environment": environment}) + "\n")
        self._process.stdin.flush()
        return Result(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=HANG_SECONDS)


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`math` and `lang`, 20 MB each, in three shards that cut layers in two."""
    root = tmp_path_factory.mktemp("experts")
    for seed, role in enumerate(("math", "lang")):
        rng = np.random.default_rng(seed)
        model = llama_like(LAYERS, rng)
        for n in range(LAYERS):
            model[f"model.layers.{n}.mlp.down_proj.weight"] = normal("BF16", (640, 1000), rng)
        model["model.embed_tokens.weight"] = normal("BF16", (1000, 320), rng)
        names = sorted(model)
        third = len(names) // 3
        files = [names[:third], names[third : 2 * third], names[2 * third :]]
        tokenizer = json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []})
        sidecars = {"tokenizer.json": tokenizer, "generation_config.json": f'{{"eos_token_id": {seed}}}', "README.md": "a card"}
        sidecars["additional_chat_templates/tool.jinja"] = "{{ tool }}"
        write_model(root / role, model, files=files, config={"num_hidden_layers": LAYERS}, sidecars=sidecars)
    return root


@pytest.fixture(scope="session")
def running_hub(experts: Path) -> Iterator[HubServer]:
    repositories = {
        MATH: Repository(experts / "math", COMMITS[MATH]),
        LANG: Repository(experts / "lang", COMMITS[LANG]),
        "acme/gated": Repository(experts / "lang", "c" * 40, token="good-one", gated=True),
        "acme/private": Repository(experts / "lang", "d" * 40, token="good-one"),
    }
    with HubServer(repositories) as server:
        yield server


@pytest.fixture
def hub(running_hub: HubServer) -> HubServer:
    running_hub.forget()
    return running_hub


@pytest.fixture(scope="session")
def environment(running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What names the server to a process, with a cache of its own."""
    home = tmp_path_factory.mktemp("hf")
    return {"HF_ENDPOINT": running_hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture(scope="session")
def running_command(environment: dict[str, str]) -> Iterator[Command]:
    command = Command(environment)
    yield command
    command.close()


@pytest.fixture
def run(running_command: Command) -> Command:
    return running_command

"""The implementations that every law in this folder runs over.

To add an implementation of a source:

1. Write a class in `places.py`: how a checkpoint gets there, how a file changes there, and how the server fails. If it speaks
   HTTP, put a `Proxy` in front of its server; then `Remote` knows the rest.
2. Add its name to `IMPLEMENTATIONS` and open it in `opened_place`. Skip with the reason where its server is not installed.

What only your source has, such as revisions or a cache, goes to a test file of its own beside this folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from lswap_core.io import retries
from tests.azurite import azurite, free_port, wait_for
from tests.buckets import Store
from tests.build import Pair, llama_like, normal, unmeasured, write_model
from tests.sources.conformance.places import BUCKET, Bucket, Container, Disk, Hub, Place, Web, point_to_hub
from tests.sources.conformance.proxy import Proxy
from tests.sources.remote.hub_server import HubServer

IMPLEMENTATIONS = ("disk", "hub", "web", "s3", "gs", "az")


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    with HubServer({}) as server:
        yield server


@pytest.fixture(scope="session")
def store() -> Iterator[tuple[Store, Proxy]]:
    """moto's server of S3, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=unmeasured())
    try:
        wait_for(port)
        store = Store(f"http://127.0.0.1:{port}")
        store.client().create_bucket(Bucket=BUCKET)
        with Proxy(store.endpoint) as proxy:
            yield store, proxy
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def azure() -> Iterator[tuple[Mapping[str, str], Proxy]]:
    """Azurite's environment."""
    with azurite(BUCKET) as environment, Proxy(environment["AZURE_STORAGE_ENDPOINT"]) as proxy:
        yield environment, proxy


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def opened_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One implementation after another."""
    name: str = request.param
    root = tmp_path_factory.mktemp(name)
    if name == "disk":
        return Disk(root)
    if name == "az":
        return Container(*request.getfixturevalue("azure"))
    if name in ("s3", "gs"):
        return Bucket(*request.getfixturevalue("store"), name)
    server = request.getfixturevalue("hub_server")
    return Hub(server, root) if name == "hub" else Web(server, root)


@pytest.fixture
def place(opened_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The same, with the environment that it needs. Waits are short, and two attempts are made before one gives up."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "HF_"))]:
        monkeypatch.delenv(name)
    for name, value in opened_place.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    if isinstance(opened_place, Hub):
        point_to_hub(opened_place.endpoint, tmp_path / "cache", monkeypatch)
    opened_place.forget()
    yield opened_place
    opened_place.forget()


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """`math` and `lang`, 2.4 MB each in three shards. Both have an empty tensor, all kinds of files beside the weights, and some
    files that do not belong to the model.
    """
    root, models = tmp_path_factory.mktemp("experts"), []
    for seed, role in enumerate(("math", "lang")):
        rng = np.random.default_rng(seed)
        model = llama_like(6, rng)
        for layer in range(6):
            model[f"model.layers.{layer}.mlp.down_proj.weight"] = normal("BF16", (200, 1000), rng)
        model["model.layers.3.empty"] = normal("F32", (0, 3), rng)
        names = sorted(model)
        sidecars = {
            "tokenizer.json": '{"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}', "tokenizer_config.json": "{}",
            "generation_config.json": f'{{"eos_token_id": {seed}}}', "README.md": "a card", "LICENSE": "free",
            "additional_chat_templates/tool.jinja": "{{ x }}", "notes/deep/x.txt": "no part of it",
        }  # fmt: skip
        files = [names[k::3] for k in range(3)]
        write_model(root / role, model, files=files, config={"num_hidden_layers": 6}, sidecars=sidecars)
        models.append(model)
    return Pair(root / "math", root / "lang", *models)


@pytest.fixture(scope="session")
def expert(experts: Pair) -> Path:
    """The directory of `math`."""
    return experts.math


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 10 kB in three shards, with nothing beside them but the index: quick to copy, to spoil it."""
    model = llama_like(6, np.random.default_rng(2))
    names = sorted(model)
    return write_model(tmp_path_factory.mktemp("small") / "small", model, files=[names[k::3] for k in range(3)])

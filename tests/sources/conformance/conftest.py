"""The implementations, by name. To add one, write a class in `places.py`, add its name here and open it in `place`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lswap_core.sources import range_stream
from tests.buckets import Store, moto_store
from tests.build import llama_like, normal, write_model
from tests.sources.conformance.places import BUCKET, Bucket, Disk, Hub, Place, Web
from tests.sources.remote.hub_server import HubServer

IMPLEMENTATIONS = ("disk", "hub", "web", "s3", "gs")


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    with HubServer({}) as server:
        yield server


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with moto_store() as store:
        store.client().create_bucket(Bucket=BUCKET)
        yield store


@pytest.fixture(params=IMPLEMENTATIONS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(range_stream, "FIRST_WAIT_SECONDS", 0.001)
    if request.param == "disk":
        opened: Place = Disk(tmp_path)
    elif request.param in ("hub", "web"):
        server = request.getfixturevalue("hub_server")
        opened = (Hub if request.param == "hub" else Web)(server, tmp_path)
        _point_to(server, tmp_path / "cache", monkeypatch)
    else:
        opened = Bucket(request.getfixturevalue("store"), request.param)
    for name, value in opened.environment.items():
        monkeypatch.setenv(name, value)
    yield opened
    opened.heal()


def _point_to(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do, of which the library takes note when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture(scope="session")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.5 MB in three shards, with an empty tensor, all kinds of files beside the weights, and some that do not belong."""
    rng = np.random.default_rng(3)
    model = llama_like(6, rng)
    model["model.layers.2.mlp.down_proj.weight"] = normal("BF16", (640, 1000), rng)
    model["model.layers.3.empty"] = normal("F32", (0, 3), rng)
    names = sorted(model)
    sidecars = {
        "tokenizer.json": '{"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}', "generation_config.json": '{"x": 1}',
        "tokenizer_config.json": "{}", "README.md": "a card", "LICENSE": "free", "additional_chat_templates/tool.jinja": "{{ x }}",
        "notes/deep/x.txt": "no part of it",
    }  # fmt: skip
    root = tmp_path_factory.mktemp("expert") / "expert"
    return write_model(root, model, files=[names[k::3] for k in range(3)], config={"num_hidden_layers": 6}, sidecars=sidecars)

"""The implementations that every law in this folder runs over.

To add an implementation of a source:

1. Write a class in `places.py`: how a checkpoint gets there, how a file changes there, and how the server fails. If it speaks
   HTTP, put a `Proxy` in front of its server; then `Remote` knows the rest.
2. Add its name to `IMPLEMENTATIONS` and open it in `place`. Skip with the reason where its server is not installed.

What only your source has, such as revisions or a cache, goes to a test file of its own beside this folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from lswap_core.io import retries
from tests.azurite import azurite
from tests.buckets import Store, moto_store
from tests.build import Pair, llama_like, normal, write_model
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
    """moto's server of S3."""
    with moto_store() as store, Proxy(store.endpoint) as proxy:
        store.client().create_bucket(Bucket=BUCKET)
        yield store, proxy


@pytest.fixture(scope="session")
def azure() -> Iterator[tuple[Mapping[str, str], Proxy]]:
    """Azurite's environment."""
    with azurite(BUCKET) as environment, Proxy(environment["AZURE_STORAGE_ENDPOINT"]) as proxy:
        yield environment, proxy


@pytest.fixture(params=IMPLEMENTATIONS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """One implementation after another. Waits are short, and few attempts are made before one gives up."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(retries, "ATTEMPTS", 3)
    opened = _open(request.param, request.getfixturevalue, tmp_path, monkeypatch)
    for name, value in opened.environment.items():
        monkeypatch.setenv(name, value)
    yield opened
    opened.forget()


def _open(name: str, fixture: Callable[[str], object], root: Path, patch: pytest.MonkeyPatch) -> Place:
    if name == "disk":
        return Disk(root)
    if name == "az":
        environment, proxy = fixture("azure")  # type: ignore[misc]
        return Container(environment, proxy)
    if name in ("s3", "gs"):
        store, proxy = fixture("store")  # type: ignore[misc]
        return Bucket(store, proxy, name)
    server = fixture("hub_server")
    assert isinstance(server, HubServer)
    _keep_hub_files_in(root / "cache", patch)
    point_to_hub(server.endpoint, patch)
    return Hub(server, root) if name == "hub" else Web(server, root)


def _keep_hub_files_in(cache: Path, patch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_CACHE does."""
    from huggingface_hub import constants

    patch.setenv("HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """`math` and `lang`, 3 MB each in three shards. Both have an empty tensor, all kinds of files beside the weights, and some
    files that do not belong to the model.
    """
    root, models = tmp_path_factory.mktemp("experts"), []
    for seed, role in enumerate(("math", "lang")):
        rng = np.random.default_rng(seed)
        model = llama_like(6, rng)
        for layer in (0, 2, 4, 5):
            model[f"model.layers.{layer}.mlp.down_proj.weight"] = normal("BF16", (400, 1000), rng)
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

"""The implementations, by name. To add one, write a class in `places.py`, add its name here and open it in `_open`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest

from tests.azurite import azurite
from tests.buckets import Store, localbucket_store, moto_store
from tests.sinks.conformance.cases import Case, make_cases
from tests.sinks.conformance.places import BUCKET, Bucket, Container, Disk, OtherBucket, Place

IMPLEMENTATIONS = ("disk", "disk in parts", "s3 on moto", "s3 on moto in parts", "gs on moto", "az on azurite")
SECOND_SERVERS = ("s3 on localbucket", "s3 on localbucket in parts")
"""The same sinks with a server that knows fewer calls."""
on_every_server = pytest.mark.parametrize("places", [*IMPLEMENTATIONS, *SECOND_SERVERS], indirect=True)
"""For laws that a sink may keep on one server and break on another."""
_NUMBERS = count()


@pytest.fixture(scope="session")
def moto() -> Iterator[Store]:
    with moto_store() as store:
        store.client().create_bucket(Bucket=BUCKET)
        yield store


@pytest.fixture(scope="session")
def localbucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    root = tmp_path_factory.mktemp("localbucket") / "root"
    with localbucket_store(root) as store:
        store.client().create_bucket(Bucket=BUCKET)
        yield store, root


@pytest.fixture(scope="session")
def azure() -> Iterator[Mapping[str, str]]:
    with azurite(BUCKET) as environment:
        yield environment


def _open(name: str, request: pytest.FixtureRequest, root: Path) -> Place:
    number, parts = next(_NUMBERS), 2 if name.endswith("in parts") else None
    if name.startswith("disk"):
        return Disk(root / str(number), parts and 3)
    if name.startswith("s3 on localbucket"):
        store, directory = request.getfixturevalue("localbucket")
        return OtherBucket(store, directory, f"{number}/out", parts)
    if name.startswith("az"):
        return Container(request.getfixturevalue("azure"), f"{number}/out")
    return Bucket(request.getfixturevalue("moto"), f"{number}/out", parts, name[:2])


class Opener:
    """Gives new and empty places of one implementation, and points this process to them."""

    def __init__(self, name: str, request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self._request, self._root, self._monkeypatch = name, request, root, monkeypatch

    def __call__(self) -> Place:
        place = _open(self.name, self._request, self._root)
        for name, value in place.environment.items():
            self._monkeypatch.setenv(name, value)
        return place


@pytest.fixture(params=IMPLEMENTATIONS)
def places(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    return Opener(request.param, request, tmp_path, monkeypatch)


@pytest.fixture
def place(places: Opener) -> Place:
    return places()


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return make_cases(tmp_path_factory.mktemp("cases"))

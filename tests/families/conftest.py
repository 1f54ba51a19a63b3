from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests.build import HANG_SECONDS, unmeasured

from .models import FAMILIES, Experts, make_experts


@pytest.fixture(scope="package", autouse=True)
def _alone() -> Iterator[None]:
    """No network, and one thread, so that equal models compute equal logits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def get_experts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Experts]:
    """The experts of a family by name, made when first asked for."""
    made: dict[str, Experts] = {}

    def get(name: str) -> Experts:
        if name not in made:
            made[name] = make_experts(FAMILIES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own."""

    def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lswap_core", *map(str, arguments)]
        environment = {**unmeasured(), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=HANG_SECONDS, cwd=cwd, env=environment, check=False
        )

    return run

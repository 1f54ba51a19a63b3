from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch

LANGUAGES = ("sw", "te", "bn", "ja")


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """So that equal models compute equal logits, and small ones do not wait for other processes' threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """Lines written for the purpose in four scripts."""
    return [
        f"{name}: {a} + {b} * {a} - {b} = {a + b * a - b}. {rest}"
        for a, b in ((3, 14), (15, 92), (65, 35), (89, 79))
        for name, rest in (
            ("Swali", "Bata wa jirani hutaga mayai kila siku, je yanabaki mangapi?"),
            ("ప్రశ్న", "బాతు ప్రతిరోజూ గుడ్లు పెడుతుంది, ఎన్ని మిగులుతాయి?"),
            ("প্রশ্ন", "হাঁস প্রতিদিন ডিম পাড়ে, কয়টি বাকি থাকে?"),
            ("問題", "アヒルは毎日卵を産みます。いくつ残りますか?"),
        )
    ]


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory, questions: list[str]) -> dict[str, Path]:
    """base, math and lang in fp32, which the CPU computes fastest in, with a tokenizer."""
    return tiny.make_experts(tmp_path_factory.mktemp("experts"), questions, dtype=torch.float32)

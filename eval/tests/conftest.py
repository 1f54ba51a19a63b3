"""The real MGSM files, where they lie beside the repository, and a few problems written for the purpose."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("seeded", derandomize=True, database=None, deadline=None)
settings.register_profile("long", print_blob=True, deadline=None)
settings.load_profile("long" if os.environ.get("LSWAP_LONG") else "seeded")  # the same examples on every machine

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")


def _find_mgsm() -> Path | None:
    """../shared/mgsm beside the repository, or what LSWAP_MGSM names."""
    root = Path(__file__).resolve().parents[2]
    places = [Path(os.environ["LSWAP_MGSM"])] if "LSWAP_MGSM" in os.environ else [root.parent / "shared" / "mgsm"]
    return next((place for place in places if (place / "exemplars.json").exists()), None)


@pytest.fixture(scope="session")
def mgsm() -> Path:
    """The real data directory."""
    if (found := _find_mgsm()) is None:
        pytest.skip("no MGSM beside the repository (../shared/mgsm); set LSWAP_MGSM to its directory")
    return found


AUTHORED = Path(__file__).parent / "authored"


@pytest.fixture
def authored(tmp_path: Path) -> Path:
    """A data directory of the same form, with problems written for these tests."""
    folder = tmp_path / "data"
    folder.mkdir()
    written = json.loads((AUTHORED / "problems.json").read_text(encoding="utf-8"))
    for language, problems in written["problems"].items():
        text = "".join(f"{question}\t{answer}\n" for question, answer in problems)
        (folder / f"mgsm_{language}.tsv").write_text(text, encoding="utf-8")
    (folder / "exemplars.json").write_text(json.dumps(written["exemplars"], ensure_ascii=False), encoding="utf-8")
    return folder

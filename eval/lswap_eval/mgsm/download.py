"""Downloads MGSM from the hub: `juletxara/mgsm`, as tab-separated files or as Parquet, whichever its current revision has.

The hub's rows have question, answer and answer_number. In the training rows, question and answer are worked exemplars with
their cues, as in `exemplars.json`. The digest covers the texts, so it equals that of a directory with the same texts.
"""

from __future__ import annotations

import os
from pathlib import Path

from lswap_core.errors import FormatError, SourceError
from lswap_eval.mgsm.problems import EXEMPLARS_FILE, LANGUAGES, Exemplar, Problem, ProblemSet, read_problems

REPOSITORY = "juletxara/mgsm"

_CONVERTED = "refs/convert/parquet"
"""Branch where the hub keeps the Parquet that it makes from data sets in other forms."""

_PATTERNS = ("mgsm_*.tsv", EXEMPLARS_FILE, "*.parquet")


def download_problems() -> ProblemSet:
    """Download the hub's copy into the hub's cache. Raises SourceError where that fails, FormatError where it has another
    form.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise SourceError(
            "the hub needs huggingface_hub; pip install 'lswap-core[eval]', or give a directory as --data"
        ) from None
    patterns = list(_PATTERNS)
    try:
        folder = snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns=patterns)
        if not _is_readable(Path(folder)):
            folder = snapshot_download(REPOSITORY, repo_type="dataset", revision=_CONVERTED, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise SourceError(f"{REPOSITORY} cannot be had from the hub: {error}; give a directory as --data") from error
    return read_snapshot(Path(folder))


def _is_readable(folder: Path) -> bool:
    return (folder / EXEMPLARS_FILE).exists() or any(folder.rglob("*.parquet"))


def read_snapshot(folder: Path) -> ProblemSet:
    """Read a downloaded revision. Raises FormatError where it has neither layout, or a row lacks a member."""
    if (folder / EXEMPLARS_FILE).exists():
        return read_problems(folder)
    problems, exemplars = {}, {}
    for language in LANGUAGES:
        tests, trains = (_rows(folder, language, split) for split in ("test", "train"))
        if tests:
            problems[language] = tuple(
                Problem(language, n, row["question"], int(row["answer_number"])) for n, row in enumerate(tests)
            )
            exemplars[language] = tuple(Exemplar(row["question"], row["answer"], int(row["answer_number"])) for row in trains)
    if not problems:
        raise FormatError("neither exemplars.json nor <language>/test-*.parquet is there", path=str(folder))
    return ProblemSet(problems, exemplars)


def _rows(folder: Path, language: str, split: str) -> list[dict[str, str]]:
    """Rows of `<language>/<split>*.parquet`, in order; none without such a file."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise SourceError("the hub's data need pyarrow; pip install 'lswap-core[eval]', or give a directory as --data") from None

    rows: list[dict[str, str]] = []
    for path in sorted((*folder.glob(f"{language}/{split}*.parquet"), *folder.glob(f"{language}/{split}/*.parquet"))):
        table = parquet.read_table(path)
        if missing := {"question", "answer", "answer_number"} - set(table.column_names):
            raise FormatError(f"the column {min(missing)!r} is missing", path=str(path))
        rows += table.to_pylist()
    return rows


def load_problems(where: str | os.PathLike[str]) -> ProblemSet:
    """Read a data directory or, with "hub", the hub's copy of MGSM, which is downloaded once.

    Raises RecipeError and FormatError as `read_problems`, and SourceError where the hub cannot be reached.
    """
    if where == "hub":
        return download_problems()
    return read_problems(where)

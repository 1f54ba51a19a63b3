"""Uploads a published output to the Hugging Face Hub: the files in its manifest, the manifest and the card, and nothing else."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lswap_core.errors import FormatError, RecipeError, SourceError
from lswap_core.io.locations import HUB_SCHEME
from lswap_core.io.retries import InterruptedTransferError, persist
from lswap_core.plan.plan import CARD_FILE, MANIFEST_FILE
from lswap_core.sources.hub_errors import translated
from lswap_core.sources.outputs import (
    LocalOutput,
    intact_shard,
    read_manifest,
)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Upload:
    """The result of an upload. commit: its full hash. files, size_bytes: of the whole output, including what was there
    already.
    """

    repository: str
    commit: str
    url: str
    private: bool
    files: int
    size_bytes: int


def check_repository(repository: str, *, public: bool) -> bool:
    """Whether the repository exists. Raises RecipeError for a name that the hub refuses, and where it exists with another
    visibility than asked for; SourceError where the hub cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise RecipeError(f"{repository!r} names no model on the hub; write it like org/name")
    api = _open_api(repository)
    errors: Any = import_module("huggingface_hub.errors")
    where = f"{HUB_SCHEME}{repository}"

    def ask() -> Any:
        with translated(where, repository):
            try:
                return api.model_info(repository)
            except errors.GatedRepoError:
                raise
            except errors.RepositoryNotFoundError:
                return None

    existing = persist(where, ask)
    if existing is None:
        return False
    if bool(existing.private) is public:
        seen, flag = ("private", "without --public") if public else ("public", "with --public")
        raise RecipeError(f"{repository} exists and is {seen}; push to it {flag}, or choose another name")
    return True


def push(output: str | os.PathLike[str], repository: str, *, public: bool = False, bars: bool = False) -> Upload:
    """Upload the output to the hub as `repository`, which is created if necessary, private unless `public`. bars: let the
    library show its progress.

    Files that are there already are not sent again, so the same call resumes an interrupted one. Raises FileNotFoundError
    where the directory has no manifest, FormatError where its shards are not the manifest's, and as `check_repository`.
    """
    root = Path(output)
    manifest = read_manifest(root)
    for shard in manifest.shards:
        intact_shard(LocalOutput(root), shard, manifest)
    names = [
        *(shard.name for shard in manifest.shards),
        *(sidecar.name for sidecar in manifest.sidecars),
        CARD_FILE,
        MANIFEST_FILE,
    ]
    if missing := [name for name in names if not (root / name).is_file()]:
        raise FormatError("is missing; its manifest or its card names it", path=str(root / missing[0]))
    exists = check_repository(repository, public=public)
    api, where = _open_api(repository), f"{HUB_SCHEME}{repository}"
    message = f"{manifest.tool}: plan {manifest.plan_digest[:12]}"
    try:
        with translated(where, repository), _bars(shown=bars):
            if not exists:
                api.create_repo(repository, private=not public, exist_ok=True)
            done = _upload_files(api, root, repository, names, message)
    except InterruptedTransferError as error:
        raise SourceError(f"{where}: {error}; what arrived is kept, push again") from None
    size_bytes = sum((root / name).stat().st_size for name in names)
    endpoint = import_module("huggingface_hub.constants").ENDPOINT
    return Upload(repository, str(done.oid), f"{endpoint}/{repository}", not public, len(names), size_bytes)


def _upload_files(api: Any, root: Path, repository: str, names: list[str], message: str) -> Any:
    """Upload with `upload_folder`, which all versions have: one commit below 2.0, from then on as many as the library
    chooses.
    """
    patterns = [glob.escape(name) for name in names]
    try:
        return api.upload_folder(repo_id=repository, folder_path=str(root), allow_patterns=patterns, commit_message=message)
    except RuntimeError as error:  # about one of the files; its cause says what went wrong
        if isinstance(error.__cause__, OSError | SourceError):
            raise error.__cause__ from None
        what = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise SourceError(f"{HUB_SCHEME}{repository}: {what:.200}; what arrived is kept, push again") from None


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    utils: Any = import_module("huggingface_hub.utils")
    hidden_here = not shown and not utils.are_progress_bars_disabled()
    if hidden_here:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hidden_here:
            utils.enable_progress_bars()


def _open_api(repository: str) -> Any:
    try:
        hub: Any = import_module("huggingface_hub")
    except ImportError as error:
        raise RecipeError(
            f"--push {repository}: {error.name} is not installed; `pip install lswap-core[hub]` brings it"
        ) from error
    return hub.HfApi(library_name="lswap_core")

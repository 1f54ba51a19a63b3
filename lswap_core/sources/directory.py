"""Rules for a checkpoint's files in any place: index against headers, sidecars by name, samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from lswap_core.checkpoint.catalogue import INDEX_FILE, SHARD_SUFFIX, SINGLE_FILE, Shard
from lswap_core.checkpoint.header import Header
from lswap_core.errors import FormatError
from lswap_core.plan.plan import MANIFEST_FILE
from lswap_core.text.strict_json import is_plain_name, parse_object

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
NESTED = ("additional_chat_templates/*.jinja", "**/*.py")
"""Files beside the weights that belong to a model: config, tokenizer, chat template, generation config, custom code, licence.
Its model card does not belong to it: the output gets its own.
"""
_SIDECAR_SUFFIXES = frozenset({".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"})
_SIDECAR_STEMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_NOT_SIDECARS = frozenset({MANIFEST_FILE, "trainer_state.json", "training_args.json", "adapter_config.json"})
_TEMPLATES_FOLDER = "additional_chat_templates"
_SAMPLES = 5
SAMPLE_BYTES = 4096


def sample_ranges(header: Header) -> list[tuple[int, int]]:
    """The blocks of a file that its fingerprint covers, half-open and evenly spread. The first and the last block of the data
    are among them.
    """
    span = max(header.file_size - header.data_begin - SAMPLE_BYTES, 0)
    places = (header.data_begin + span * k // (_SAMPLES - 1) for k in range(_SAMPLES))
    return [(place, min(place + SAMPLE_BYTES, header.file_size)) for place in places]


def is_sidecar(name: str) -> bool:
    """Whether a file of that name, relative to the checkpoint's directory, belongs to the model. For files in its
    subdirectories, call this only for those that match NESTED.
    """
    path = PurePosixPath(name)
    wanted = path.suffix in _SIDECAR_SUFFIXES or path.name.startswith(_SIDECAR_STEMS)
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return wanted and not hidden and name not in _NOT_SIDECARS and not name.endswith(".index.json")


def is_nested_sidecar(name: str) -> bool:
    """Whether `name`, in a subdirectory of the checkpoint, matches NESTED."""
    path = PurePosixPath(name)
    return path.suffix == ".py" or (path.suffix == ".jinja" and path.parts[:-1] == (_TEMPLATES_FOLDER,))


def check_name(name: str, path: str) -> None:
    """Raises FormatError for a sidecar's name that a manifest cannot hold."""
    if not (name.isprintable() and all(map(is_plain_name, name.split("/")))):
        raise FormatError("its name has characters that no manifest can hold; rename it", path=path)


def parse_index(raw: bytes, *, path: str, single_beside: bool) -> dict[str, Any]:
    """Return the weight_map of an index, tensor to file; every file is a plain name of a shard.

    single_beside: whether there is a SINGLE_FILE in the same directory. Raises FormatError.
    """
    document = parse_object(raw, path=path, blame=lambda trail: trail[-1], shallow=True)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("has no 'weight_map' of tensor names to files", path=path)
    if not isinstance(document.get("metadata") or {}, dict):
        raise FormatError(f"its 'metadata' must be an object, not {document['metadata']!r:.60}", path=path)
    seen: set[str] = set()
    for tensor, file in weight_map.items():
        if isinstance(file, str) and file in seen:
            continue
        if not is_plain_name(file):
            raise FormatError(f"its file {file!r:.200} is not a plain file name in this directory", path=path, tensor=tensor)
        if not file.endswith(SHARD_SUFFIX):
            raise FormatError(f"its file {file!r:.200} does not end in {SHARD_SUFFIX}", path=path, tensor=tensor)
        seen.add(file)
    if single_beside and SINGLE_FILE not in seen:
        raise FormatError(
            f"does not mention the {SINGLE_FILE} beside it; loaders differ in which they take, remove one", path=path
        )
    return weight_map


def tensors_by_file(weight_map: Mapping[str, str]) -> dict[str, set[str]]:
    """The inverse of a weight_map."""
    by_file: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        by_file.setdefault(file, set()).add(tensor)
    return by_file


def check_shard(shard: Shard, count: int, weight_map: Mapping[str, str], *, index_path: str, path: str) -> None:
    """Compare a shard with the index, which says that `count` tensors are in it. Raises FormatError, which names the first
    wrong one.
    """
    tensors = shard.header.tensors
    if len(tensors) == count and {*map(weight_map.get, tensors)} == {shard.name}:
        return
    said = {tensor for tensor, file in weight_map.items() if file == shard.name}
    for tensor in sorted(said - tensors.keys()):
        raise FormatError(f"the index says that it is in {shard.name}, but it is not", path=index_path, tensor=tensor)
    for tensor in sorted(tensors.keys() - said):
        elsewhere = f"the index says {weight_map[tensor]}" if tensor in weight_map else "the index does not mention it"
        raise FormatError(f"is in this file, but {elsewhere}", path=path, tensor=tensor)


def only_file(names: Collection[str], where: str) -> str:
    """The only safetensors file of a directory without an index, given the names in it. Raises FormatError."""
    if SINGLE_FILE in names:
        return SINGLE_FILE
    shards = sorted(name for name in names if name.endswith(SHARD_SUFFIX) and not name.startswith("."))
    if shards:
        raise FormatError(
            f"has no {SINGLE_FILE} and no {INDEX_FILE}, but {', '.join(shards[:3])}; name the file itself, or add the index",
            path=where,
        )
    if pickles := sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in PICKLES)):
        raise pickled(where, pickles[0])
    raise FormatError(f"no checkpoint: neither {SINGLE_FILE} nor {INDEX_FILE}", path=where)


def pickled(where: str, file: str) -> FormatError:
    """What to say of weights that exist only as a pickle."""
    return FormatError(
        f'holds only pickled weights ({file}), which run code when read; convert them: python -c "from transformers '
        "import AutoModelForCausalLM as M; M.from_pretrained('DIR', dtype='auto').save_pretrained('NEW')\"",
        path=where,
    )

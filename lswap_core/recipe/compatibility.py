"""Compares two checkpoints before a merge: tensors, configs and vocabularies.

Every difference is collected before anything is raised. These are issues, which prevent the merge: names, shapes and dtypes
of tensors; values that both config.json files state differently; a rotary encoding or a quantisation that only one states;
the vocabulary. These are notes: values that fine-tuning changes without changing the network, and values that only one file
states (another version of transformers wrote it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lswap_core.checkpoint.catalogue import Checkpoint
from lswap_core.errors import FormatError, RecipeError
from lswap_core.text.plain import listed
from lswap_core.text.strict_json import parse_object

_IGNORED = frozenset({"_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype"})
"""These do not describe the network; dtypes are compared tensor by tensor."""
_TRAINING = frozenset(
    {
        "use_cache", "unsloth_version", "unsloth_fixed", "attn_implementation", "_attn_implementation", "attention_dropout",
        "hidden_dropout", "dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "classifier_dropout", "initializer_range",
        "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "model_max_length", "pretraining_tp",
        "output_router_logits", "router_aux_loss_coef", "task_specific_params", "gradient_checkpointing",
    }
)  # fmt: skip
"""These do not change what the network computes with given weights."""
_STRUCTURAL_ALONE = frozenset({"quantization_config"})
_RAW_VOCABULARIES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
_TOKENIZER_PARTS = ("type", "merges", "normalizer", "pre_tokenizer", "decoder")
_ROPE_DEFAULTS = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
"""transformers' defaults where a config does not say."""
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Comparison:
    """issues: why the two cannot be combined. notes: differences that do not matter; the output takes math's value."""

    issues: tuple[str, ...]
    notes: tuple[str, ...]


def check_roles(**sources: Checkpoint) -> None:
    """Raises RecipeError where a source has another role than the recipe expects."""
    if any(role != source.role for role, source in sources.items()):
        opened, expected = ([repr(role) for role in roles] for roles in ([s.role for s in sources.values()], sources))
        raise RecipeError(f"the sources are opened as {listed(opened)}; expected {listed(expected)}")


def compare(math: Checkpoint, lang: Checkpoint, *, allow_cast: bool = False) -> Comparison:
    """Return all differences between two experts. With `allow_cast`, a different dtype is no issue where a cast is possible."""
    configs = _compare_configs(math, lang)
    issues = (*configs.issues, *_tokenizer_issues(math, lang), *tensor_issues(math, lang, allow_cast))
    adapters = (note for side in (math, lang) if side.adapter is not None for note in side.adapter.notes)
    return Comparison(issues, (*configs.notes, *adapters))


def tensor_issues(math: Checkpoint, other: Checkpoint, allow_cast: bool) -> Iterator[str]:
    """Yield the differences between two checkpoints' tensors that prevent a merge, one sentence each."""
    adapted = math.adapter is not None or other.adapter is not None
    if not adapted and [s.header.raw for s in math.shards] == [s.header.raw for s in other.shards]:
        return  # fine-tunes of one base mostly have equal headers
    role, ours = other.role, math.role
    for name in other.tensors:
        if name not in math.tensors:
            yield f"tensor {name!r} is in {role} only"
    for name, x in math.tensors.items():
        y = other.tensors.get(name)
        if y is None:
            yield f"tensor {name!r} is in {ours} only"
            continue
        if x.shape != y.shape:
            yield f"tensor {name!r} has shape {list(x.shape)} in {ours}, {list(y.shape)} in {role}"
        in_math, in_other = math.dtype_of(name), other.dtype_of(name)
        if in_math is in_other:
            continue
        castable = in_math.blendable and in_other.blendable
        if not (allow_cast and castable):
            yield f"tensor {name!r} is {in_math} in {ours}, {in_other} in {role}" + (
                f" (--cast brings it to {ours}'s)" if castable else ""
            )


def _facts(config: Mapping[str, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """Flatten config.json to dotted keys. Rotary settings become one fact in either spelling: transformers 4 writes
    rope_theta and rope_scaling, transformers 5 writes the same values as rope_parameters.
    """
    facts: dict[str, Any] = {}
    rope: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("rope_theta", "partial_rotary_factor"):
            rope[key] = value
        elif key in ("rope_scaling", "rope_parameters"):
            if not isinstance(value or {}, dict):
                raise FormatError(f"{prefix}{key} must be an object, not {value!r:.60}", path=path)
            rope |= {"rope_type" if k == "type" else k: v for k, v in (value or {}).items()}
        elif isinstance(value, dict) and key != "quantization_config":
            facts |= _facts(value, path, f"{prefix}{key}.")
        else:
            facts[prefix + key] = value
    if rope:
        facts[f"{prefix}rope"] = _ROPE_DEFAULTS | rope
    return facts


def _by_layer_type(rope: Mapping[str, Any]) -> bool:
    """Rotary settings by type of layer, as transformers 5 has them for some models."""
    return any(isinstance(value, dict) for value in rope.values())


def _compare_configs(math: Checkpoint, lang: Checkpoint) -> Comparison:
    if math.config is None or lang.config is None:
        missing = [c.role for c in (math, lang) if c.config is None]
        return Comparison((), (f"no config.json in {' and '.join(missing)}: the experts' configs were not compared",))
    x, y = (_facts(c.config, c.path_of("config.json")) for c in (math, lang) if c.config is not None)
    issues: list[str] = []
    notes: list[str] = []
    for key in dict.fromkeys([*x, *y]):
        leaf = key.rpartition(".")[2]
        unstated = _ROPE_DEFAULTS if leaf == "rope" else _ABSENT
        in_math, in_lang = x.get(key, unstated), y.get(key, unstated)
        if in_math == in_lang or leaf in _IGNORED:
            continue
        shown = [f"{value!r:.120}" if value is not _ABSENT else "absent" for value in (in_math, in_lang)]
        said = f"config.json: {key} is {shown[0]} in {math.role}, {shown[1]} in {lang.role}"
        one_sided = _ABSENT in (in_math, in_lang)
        matters = leaf in _STRUCTURAL_ALONE if one_sided else leaf not in _TRAINING
        if leaf == "rope" and _by_layer_type(in_math) != _by_layer_type(in_lang):
            matters, said = False, f"{said}: written by two versions of transformers, and not compared"
        (issues if matters else notes).append(said)
    return Comparison(tuple(issues), tuple(notes))


def _tokenizer_issues(math: Checkpoint, lang: Checkpoint) -> Iterator[str]:
    first, second = math.role, lang.role
    x = {sidecar.name: sidecar for sidecar in math.sidecars}
    y = {sidecar.name: sidecar for sidecar in lang.sidecars}
    for name in _RAW_VOCABULARIES:
        if name in x and name in y and not x[name].equals(y[name]):
            yield f"{name}: its bytes differ between {first} and {second}"
    name = "tokenizer.json"
    if name in x and name in y and not x[name].equals(y[name]):
        in_math = _tokenizer(x[name].read(), math.path_of(name))
        in_lang = _tokenizer(y[name].read(), lang.path_of(name))
        for part in _TOKENIZER_PARTS:
            if in_math[part] != in_lang[part]:
                yield f"{name}: {part} differs between {first} and {second}"
        theirs, ours = in_lang["vocabulary"], in_math["vocabulary"]
        for token in dict.fromkeys([*ours, *theirs]):
            if ours.get(token) != theirs.get(token):
                yield f"{name}: token {token!r} has id {ours.get(token)} in {first}, {theirs.get(token)} in {second}"


def _tokenizer(raw: bytes, path: str) -> dict[str, Any]:
    """The parts of a tokenizer.json (tokenizers' own format) that decide the token ids of a text, with added tokens."""
    document = parse_object(raw, path=path)
    try:
        model = document["model"]
        vocab = model.get("vocab") or {}
        if isinstance(vocab, list):  # Unigram: [token, score] in the order of ids
            vocab = {str(entry[0]): number for number, entry in enumerate(vocab)}
        # older versions of tokenizers wrote "a b" where newer ones write ["a", "b"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
        added = {token["content"]: token["id"] for token in document.get("added_tokens") or []}
        parts = {part: document.get(part) for part in _TOKENIZER_PARTS}
        return {**parts, "type": model.get("type"), "merges": merges, "vocabulary": {**vocab, **added}}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise FormatError(f"not a tokenizer file as `tokenizers` writes it ({error!r})", path=path) from None

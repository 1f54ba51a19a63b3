"""Reads a LoRA adapter, as PEFT writes it: its config and its tensors become changes of a checkpoint's tensors.

Method: Hu et al., LoRA, arXiv 2106.09685. Files, scaling and patterns: https://huggingface.co/docs/peft, whose
`merge_and_unload` gives the same weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from lswap_core.checkpoint.catalogue import Adapter, Checkpoint, LowRank, Shard, TensorRef
from lswap_core.checkpoint.names import HEAD_MODULES, modules_with_scale, split_layer
from lswap_core.errors import FormatError, MismatchError, RecipeError
from lswap_core.text.strict_json import Node

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
_WRAPPERS = frozenset({"base_layer", "modules_to_save"})
"""Components that PEFT's wrappers add to a module's name."""
_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "init_lora_weights"}
)
_WITHOUT_EFFECT = frozenset(
    {
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "target_modules",
        "exclude_modules", "lora_dropout", "modules_to_save", "layers_to_transform", "layers_pattern", "megatron_config",
        "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size",
        "runtime_config", "ensure_weight_tying",
    }
)  # fmt: skip
"""These say how it was trained, or which tensors it has, which the file shows. Any other option must be unset."""
_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights unchanged. PiSSA, OLoRA and others subtract their start from the base."""
_ONLY_PLAIN = "only plain LoRA without biases is applied here, merge this adapter with PEFT first"
_MAX_PATTERN = 1000
"""Length of a pattern in characters."""


@dataclass(frozen=True, slots=True)
class _Config:
    """The options of adapter_config.json that decide the weights."""

    rank: int
    alpha: float
    root_scaling: bool
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    fan_in_fan_out: bool
    trained_on: str

    def rank_of(self, module: str) -> int:
        return next((rank for pattern, rank in self.ranks if pattern.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of the matrix product: alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        return alpha / (math.sqrt(self.rank_of(module)) if self.root_scaling else self.rank_of(module))


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both factors of a change: a is (rank, n), b is (m, rank)."""

    a: TensorRef
    b: TensorRef
    embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]


def read_adapter(config: Node, shard: Shard, base: Checkpoint, *, root: str) -> Adapter:
    """Read an adapter over `base`. root: its directory. config: its adapter_config.json. shard: its weights.

    Raises FormatError for malformed files, RecipeError for anything but plain LoRA, and MismatchError, which lists every
    tensor that does not match the base.
    """
    said = _read_config(config)
    path = f"{root.rstrip('/')}/{shard.name}"
    pairs, full = _sort(shard, base, path)
    places = _Places(base)
    issues: list[str] = []
    changed: dict[str, tuple[str, _Pair]] = {}
    for module, pair in pairs.items():
        if (name := places.find(f"{module}.weight", issues)) is not None:
            changed[name] = (module, pair)
    replaced = {}
    for tensor, ref in full.items():
        if (name := places.find(tensor, issues)) is not None:
            replaced[name] = ref
    issues += _obstacles(base, changed, replaced, said)
    if issues:
        raise MismatchError(f"{path} does not fit {base.location}", issues)
    turned = _turned(base, {name: pair for name, (_, pair) in changed.items()}, said.fan_in_fan_out)
    low_rank = {name: LowRank(pair.a, pair.b, said.scale_of(module), turned[name]) for name, (module, pair) in changed.items()}
    notes = tuple(_notes(said, base))
    return Adapter(root, (shard,), MappingProxyType(low_rank), MappingProxyType(replaced), notes)


def _read_config(config: Node) -> _Config:
    kind = config["peft_type"].text()
    if kind != "LORA":
        raise _unsupported(config["peft_type"], f"is {kind!r:.60}")
    for key, option in config.items():
        if key not in _READ | _WITHOUT_EFFECT and option.value not in (None, False, "", [], {}):
            raise _unsupported(option, f"is {option.value!r:.60}")
    if "bias" in config and config["bias"].text() != "none":
        raise _unsupported(config["bias"], f"is {config['bias'].value!r:.60}")
    if "init_lora_weights" in config and config["init_lora_weights"].value not in _INITS:
        begun = config["init_lora_weights"]
        raise _unsupported(begun, f"is {begun.value!r:.60}, which changes the base's weights")
    flags = {key: key in config and config[key].boolean() for key in ("use_rslora", "fan_in_fan_out")}
    trained_on = config["base_model_name_or_path"].optional() if "base_model_name_or_path" in config else None
    return _Config(
        config["r"].integer(low=1),
        config["lora_alpha"].number(),
        flags["use_rslora"],
        tuple((pattern, rank.integer(low=1)) for pattern, rank in _patterns(config, "rank_pattern")),
        tuple((pattern, alpha.number()) for pattern, alpha in _patterns(config, "alpha_pattern")),
        flags["fan_in_fan_out"],
        "" if trained_on is None else trained_on.text(),
    )


def _unsupported(option: Node, what: str) -> RecipeError:
    return RecipeError(str(option.refuse(f"{what}; {_ONLY_PLAIN}")))


def _patterns(config: Node, key: str) -> Iterator[tuple[re.Pattern[str], Node]]:
    """Patterns of module names as PEFT reads them: a regular expression for the whole name, or for its end after a dot. The
    first match counts.
    """
    table = config[key].optional() if key in config else None
    for text, value in () if table is None else table.items():
        if len(text) > _MAX_PATTERN:
            raise value.refuse(f"the pattern has {len(text)} characters; expected {_MAX_PATTERN} at most")
        try:
            yield re.compile(rf"(.*\.)?({text})$"), value
        except (re.error, RecursionError, OverflowError) as error:
            raise value.refuse(f"not a regular expression: {error}") from None


def _sort(shard: Shard, base: Checkpoint, path: str) -> tuple[dict[str, _Pair], dict[str, TensorRef]]:
    """Sort the file's tensors: pairs of factors by module, and other tensors by their name in the model."""
    halves: dict[str, dict[str, TensorRef]] = {}
    embeddings: dict[str, bool] = {}
    full: dict[str, TensorRef] = {}
    start = shard.header.data_begin
    for name, info in shard.header.tensors.items():
        if not name.startswith(_PREFIX):
            raise FormatError(f"its name does not begin with {_PREFIX!r}, as PEFT writes it", path=path, tensor=name)
        bare = name.removeprefix(_PREFIX)
        ref = TensorRef(base.role, shard.name, info.dtype, info.shape, start + info.begin, start + info.end)
        if (factor := _FACTOR.fullmatch(bare)) is not None:
            module, is_embedding = _unwrapped(factor["module"]), factor["embedding"] is not None
            sides = halves.setdefault(module, {})
            if factor["side"] in sides or embeddings.setdefault(module, is_embedding) != is_embedding:
                raise FormatError(f"{module!r} has two changes; expected one", path=path, tensor=name)
            sides[factor["side"]] = ref
        elif "lora_" in bare or "trainable_tokens" in bare:
            kind = "DoRA" if "lora_magnitude" in bare else "trained tokens" if "trainable_tokens" in bare else "no plain LoRA"
            raise RecipeError(f"{path}: tensor {name!r} is {kind}; {_ONLY_PLAIN}")
        elif (own := _unwrapped(bare)) in full:
            raise FormatError(f"{own!r} is there twice", path=path, tensor=name)
        else:
            full[own] = ref
    if not halves and not full:
        raise FormatError("holds no tensor, so the adapter changes nothing", path=path)
    return {module: _pair(module, sides, embeddings[module], path) for module, sides in halves.items()}, full


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _pair(module: str, sides: Mapping[str, TensorRef], embedding: bool, path: str) -> _Pair:
    if missing := {"A", "B"} - sides.keys():
        raise FormatError(f"has no lora_{missing.pop()}; a change has two factors", path=path, tensor=module)
    a, b = sides["A"], sides["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        what = f"its factors have shapes {list(a.shape)} and {list(b.shape)}; expected (rank, n) and (m, rank)"
        raise FormatError(f"{what}; convolutions cannot be adapted", path=path, tensor=module)
    if not (a.dtype.blendable and b.dtype.blendable):
        raise FormatError(f"its factors are {a.dtype} and {b.dtype}; expected floating point", path=path, tensor=module)
    return _Pair(a, b, embedding)


class _Places:
    """Maps an adapter's tensor names to the base's. One of the two names may have a prefix that the other lacks, as in a
    model saved with or without its head; the longer name then ends in the shorter one.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._taken: dict[str, str] = {}

    def find(self, target: str, issues: list[str]) -> str | None:
        """Return the base's name, or None after adding an issue to `issues`."""
        names = [target] if target in self._base.tensors else self._alike.get(target) or self._shorter(target)
        if len(names) != 1:
            issues.append(f"tensor {target!r} " + (f"could be {' or '.join(names)}" if names else self._why_missing(target)))
            return None
        if self._taken.setdefault(names[0], target) != target:
            issues.append(f"tensor {target!r} and {self._taken[names[0]]!r} would both be {names[0]!r}")
            return None
        return names[0]

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        """The base's names by each of their suffixes."""
        ends: dict[str, list[str]] = {}
        for name in self._base.tensors:
            end = name
            while "." in (end := end.partition(".")[2]):
                ends.setdefault(end, []).append(name)
        return ends

    def _shorter(self, target: str) -> list[str]:
        while "." in (target := target.partition(".")[2]):
            if target in self._base.tensors:
                return [target]
        return []

    def _why_missing(self, target: str) -> str:
        module = target.removesuffix(".weight")
        if self._base.tied and module.rpartition(".")[2] in HEAD_MODULES:
            return "is not in the base, where head and embeddings are one tensor; untie them first"
        if any(f"{module}.{packed}" in self._base.tensors for packed in ("qweight", "weight_packed")):
            return "is quantised in the base; adapt the unquantised weights"
        return "is not in the base"


def _obstacles(
    base: Checkpoint, changed: Mapping[str, tuple[str, _Pair]], replaced: Mapping[str, TensorRef], said: _Config
) -> Iterator[str]:
    scaled = modules_with_scale(base.tensors)
    for name in dict.fromkeys([*changed, *replaced]):
        ref = base.tensors[name]
        quantised = ref.dtype.bits <= 8 and (not ref.dtype.blendable or name.rpartition(".")[0] in scaled)
        if quantised or (name in changed and not ref.dtype.blendable):
            yield f"tensor {name!r} is {ref.dtype} in the base, quantised or no number; adapt the unquantised weights"
        elif name in replaced:
            whole = replaced[name]
            if whole.shape != ref.shape:
                what = f"has shape {list(ref.shape)}, the adapter's is {list(whole.shape)}"
                yield f"tensor {name!r} {what}; resize the base first, and its config and tokenizer with it"
            elif whole.dtype != ref.dtype and not (whole.dtype.blendable and ref.dtype.blendable):
                yield f"tensor {name!r} is {ref.dtype}, the adapter's is {whole.dtype}"
        if name in changed:
            module, pair = changed[name]
            fits = [pair.shape[::-1]] if pair.embedding else [pair.shape, pair.shape[::-1]]
            if ref.shape not in fits:
                yield f"tensor {name!r} has shape {list(ref.shape)}, its change has {list(fits[0])}"
            if pair.a.shape[0] != said.rank_of(module):
                yield f"tensor {name!r} has a change of rank {pair.a.shape[0]}, the adapter's config says {said.rank_of(module)}"


def _turned(base: Checkpoint, pairs: Mapping[str, _Pair], flag: bool) -> dict[str, bool]:
    """Decide whether each change is transposed, as for embeddings and GPT-2's Conv1D, whose weights are (in, out).

    The shape decides unless a matrix is square. For a square matrix the other matrices of its block decide, by their changes
    or, as in transformers, their biases. PEFT goes by the module's class and sets `fan_in_fan_out`, one flag for the whole
    adapter, to that of the last module it wrapped. So the flag counts only where nothing else decides.
    """
    turned = {name: pair.embedding or base.tensors[name].shape != pair.shape for name, pair in pairs.items()}
    square = {name for name, pair in pairs.items() if not pair.embedding and pair.shape[0] == pair.shape[1]}
    votes: dict[str, set[bool]] = {}
    for name in pairs.keys() - square if square else ():
        if not pairs[name].embedding:
            votes.setdefault(_block(name), set()).add(turned[name])
    for name, ref in base.tensors.items() if square else ():
        bias = base.tensors.get(name.removesuffix("weight") + "bias") if name.endswith(".weight") else None
        if bias is not None and len(ref.shape) == 2 and ref.shape[0] != ref.shape[1] and len(bias.shape) == 1:
            votes.setdefault(_block(name), set()).add(bias.shape[0] == ref.shape[1])
    for name in square:
        said = votes.get(_block(name), set())
        turned[name] = said == {True} if len(said) == 1 else flag
    return turned


def _block(name: str) -> str:
    at = split_layer(name)
    return "" if at is None else f"{at[0]}.{at[1]}"


def _notes(said: _Config, base: Checkpoint) -> Iterator[str]:
    trained_on = said.trained_on.rstrip("/").rpartition("/")[2]  # may be a path, which must not be published
    if trained_on and trained_on.casefold() != base.name.rpartition("/")[2].casefold():
        yield f"{base.role}'s adapter says that it was trained on {trained_on!r:.200}, its base here is {base.name!r}"

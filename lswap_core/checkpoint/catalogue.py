"""A checkpoint as a catalogue: its tensors, and the byte range of each. Values only: no I/O, no tensor data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import repeat
from types import MappingProxyType
from typing import Any, NamedTuple

from lswap_core.checkpoint.dtypes import DType
from lswap_core.checkpoint.header import Header
from lswap_core.checkpoint.names import Stack, find_stack
from lswap_core.errors import FormatError, RecipeError
from lswap_core.options import ROLES

Role = str
"""The purpose of a source: an identifier, see `parse_role`."""

_ROLE = re.compile(r"[a-z][a-z0-9_]{0,31}")

_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

_TEXT_KEYS = ("text_config", "llm_config", "language_config")


def parse_role(text: str) -> Role:
    """Parse `text` as a role: a lower-case letter, then lower-case letters, digits and underscores, 32 characters at most.

    Raises RecipeError for anything else.
    """
    if not (isinstance(text, str) and _ROLE.fullmatch(text)):
        rule = "a lower-case letter, then lower-case letters, digits and underscores, 32 characters at most"
        raise RecipeError(f"{text!r:.60} is no role; expected {rule}")
    return text


def in_order(roles: Iterable[Role]) -> list[Role]:
    """Roles in the order of plans: those in `ROLES` first, then the others as given."""
    return sorted(roles, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))


class TensorRef(NamedTuple):
    """The byte range of a tensor: `begin` and `end` are absolute and half-open in `file`, a name within the source."""

    role: Role
    file: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


_ref = partial(tuple.__new__, TensorRef)
"""Makes a TensorRef from a tuple of its fields in C: a large model has 100,000 of them."""


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint.

    mtime_ns shows whether the file was touched; it is never published. sample: a few bytes of its data, spread over the file.
    """

    name: str
    header: Header
    mtime_ns: int
    sample: bytes = b""

    @cached_property
    def header_sha256(self) -> str:
        """SHA-256 of the bytes before the first tensor, as hex."""
        return hashlib.sha256(self.header.encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of header and sample, as hex. Fine-tunes of one base have equal headers; the sample distinguishes their
        shards without reading them whole.
        """
        digest = hashlib.sha256(self.header.encode())
        digest.update(self.sample)
        return digest.hexdigest()


class Content(NamedTuple):
    """What a store reports about a file without reading it: its size in bytes, and a digest of all bytes, `algorithm:hex`."""

    size: int
    digest: str


_SHA256 = "sha256:"


@dataclass(frozen=True)
class Sidecar:
    """A small file beside the weights. `read` returns its bytes; it is called only where they are needed.

    told: what the store reports about the file. A reader that copies the file into the output compares the bytes with it.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)
    told: Content | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of its bytes, as hex."""
        if self.told is not None and self.told.digest.startswith(_SHA256):
            return self.told.digest.removeprefix(_SHA256)
        return hashlib.sha256(self.read()).hexdigest()

    @cached_property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.read()) if self.told is None else self.told.size

    def equals(self, other: Sidecar) -> bool:
        """Whether both have the same bytes. Reads neither file where the store reported digests of one algorithm for both."""
        if self.told is not None and other.told is not None:
            (mine, _, x), (theirs, _, y) = self.told.digest.partition(":"), other.told.digest.partition(":")
            if mine == theirs:
                return x == y
        return self.sha256 == other.sha256


@dataclass(frozen=True, slots=True)
class LowRank:
    """A low-rank change of one matrix: scale * (b @ a), or its transpose. See `lswap_core.recipe.expressions.Adapted`."""

    a: TensorRef
    b: TensorRef
    scale: float
    transposed: bool


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter over a checkpoint. root: the directory of its files. low_rank: the matrices that it changes, by name.
    replaced: the tensors that it holds in full, by name. notes: what a user should know, one sentence each.
    """

    root: str
    shards: tuple[Shard, ...]
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, TensorRef]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """Catalogue of a model directory.

    location: where it was opened, a directory or a file. root: the directory of its files. name: its name in published files
    (a hub id or the directory's name). index: the text of its index, None for a single file. config: its config.json, None
    where it has none. adapter: changes the tensors when they are read. Raises FormatError where two shards hold one tensor.
    """

    role: Role
    location: str
    root: str
    name: str
    shards: tuple[Shard, ...]
    index: str | None = None
    config: Mapping[str, Any] | None = None
    sidecars: tuple[Sidecar, ...] = ()
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        _ = self._home  # raises where a tensor is there twice

    @property
    def files(self) -> tuple[Shard, ...]:
        """Every file that holds tensors: shards, then the adapter's."""
        return self.shards if self.adapter is None else (*self.shards, *self.adapter.shards)

    def path_of(self, file: str) -> str:
        """The path of `file` for messages."""
        adapted = self.adapter is not None and file in {shard.name for shard in self.adapter.shards}
        root = self.adapter.root if self.adapter is not None and adapted else self.root
        return f"{root.rstrip('/')}/{file}"

    @cached_property
    def tensors(self) -> Mapping[str, TensorRef]:
        """Every tensor, in the order of shards and, within a shard, of bytes."""
        return self._own if self.adapter is None else MappingProxyType({**self._own, **self.adapter.replaced})

    @cached_property
    def _home(self) -> Mapping[str, Shard]:
        """The shard of each tensor, by name. Raises FormatError for a tensor in two shards."""
        home: dict[str, Shard] = {}
        for shard in self.shards:
            if not home.keys().isdisjoint(shard.header.tensors):
                twice = next(name for name in shard.header.tensors if name in home)
                what = f"is also in {home[twice].name}; a tensor has one place"
                raise FormatError(what, path=self.path_of(shard.name), tensor=twice)
            home |= dict.fromkeys(shard.header.tensors, shard)
        return home

    def find(self, name: str) -> TensorRef | None:
        """Look up one of `tensors` without making all the others: a swap needs only a few of lang's."""
        if self.adapter is not None:
            return self.tensors.get(name)
        if (shard := self._home.get(name)) is None:
            return None
        info, start = shard.header.tensors[name], shard.header.data_begin
        return TensorRef(self.role, shard.name, info.dtype, info.shape, start + info.begin, start + info.end)

    @cached_property
    def _own(self) -> Mapping[str, TensorRef]:
        """Every tensor without the adapter."""
        refs: dict[str, TensorRef] = {}
        for shard in self.shards:
            tensors, start = shard.header.tensors, shard.header.data_begin
            dtypes, shapes, _, ends = zip(*tensors.values(), strict=True) if tensors else ((), (), (), ())
            at = [start, *map(start.__add__, ends)]  # tensors have no holes between them: each begins where the one before ended
            fields = zip(repeat(self.role), repeat(shard.name), dtypes, shapes, at, at[1:])  # `at` has one item more
            refs.update(zip(tensors, map(_ref, fields), strict=True))
        return MappingProxyType(refs)

    def dtype_of(self, name: str) -> DType:
        """The dtype in which a tensor is used. A tensor that an adapter holds in full is rounded to the dtype of the tensor
        it replaces.
        """
        return self._home[name].header.tensors[name].dtype

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """The part of config.json that describes the language model: of a multimodal config, its text part."""
        config = self.config or {}
        if not any(key in config for key in _COUNT_KEYS):
            for key in _TEXT_KEYS:
                if isinstance(config.get(key), dict):
                    return MappingProxyType(config[key])
        return config

    @cached_property
    def tied(self) -> bool:
        """Whether config.json says that head and embeddings are one tensor."""
        config = self.config or {}
        return bool(self.text_config.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))

    def stack(self, prefix: str | None = None) -> Stack:
        """The transformer layers at `prefix`, or where names and config.json agree. Raises RecipeError where they do not."""
        counts = {key: self.text_config[key] for key in _COUNT_KEYS if self.text_config.get(key) is not None}
        for key, count in counts.items():
            if type(count) is not int or count < 1:
                raise RecipeError(f"{self.path_of('config.json')}: {key} is {count!r}; expected a positive number of layers")
        if len(set(counts.values())) > 1:
            raise RecipeError(f"{self.path_of('config.json')}: contradicts itself about the number of layers: {counts}")
        extra = self.text_config.get("num_nextn_predict_layers")
        return find_stack(
            self.tensors,
            expected=next(iter(counts.values()), None),
            extra=extra if type(extra) is int and extra > 0 else 0,
            prefix=prefix,
            where=self.location,
        )


SINGLE_FILE = "model.safetensors"

SHARD_SUFFIX = ".safetensors"

INDEX_FILE = "model.safetensors.index.json"

ADAPTER_FILE = "adapter_model.safetensors"
"""A source that has this file beside its shards is a base with an adapter, called `base+adapter`."""

"""One model in memory, whose layers are swapped in place, instead of a checkpoint on disk for each setting.

The parameters come from the same draft, evaluator and kernels as the output of a merge. So the model in memory has the merged
model's weights, bit for bit. Only tensors whose expression changes are evaluated, piece by piece, so memory stays at one
model and a few megabytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor

from lswap_core import Checkpoint, Draft, kernels
from lswap_core.checkpoint.catalogue import Role
from lswap_core.engine.evaluate import Evaluator
from lswap_core.errors import RecipeError
from lswap_core.recipe.expressions import Expression
from lswap_core.sources.local import LocalSource
from lswap_core.torch import FLOATS
from lswap_eval.ablate.settings import tensor_bytes

_TORCH = {
    **{name: dtype for dtype, name in FLOATS.items()},
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
_COMPUTED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Buffers that some old checkpoints store and no model reads, since models compute them."""
_PROBE_BYTES = 4096


class ResidentModel:
    """A loaded model, and the draft that it holds now.

    model: as transformers loaded it from `primary`, unchanged since, on any device. sources: by role, with `primary`; every draft
    uses these. Raises RecipeError where transformers keeps this architecture's tensors under other names or in another form
    than the files. Not safe to use from several threads. Call `close`, or use it as a context manager.
    """

    def __init__(self, model: Any, primary: Checkpoint, sources: Mapping[Role, Checkpoint]) -> None:
        self.model = model
        self._primary = primary
        self._stored = _parameters(model, primary)
        self._held: dict[str, Expression] = dict(Draft.of(primary).tensors)
        self._sources: LocalSource | None = None
        self._attach(sources)
        self._check_loaded()

    def attach(self, sources: Mapping[Role, Checkpoint]) -> None:
        """Use other sources from now on, such as another language expert. The primary source stays the same. The model
        gets the primary source's weights first, since it records its weights in terms of the sources.
        """
        self.swap(Draft.of(self._primary))
        self._attach(sources)

    def swap(self, draft: Draft) -> int:
        """Give the model the weights of `draft`. Returns the number of bytes written.

        Raises StalePlanError where a source has changed, and RecipeError where a tensor does not fit. After any error, the
        next call repairs what this one left incomplete.
        """
        if self._sources is None:
            raise ValueError("this model is closed")
        if draft.tensors.keys() != self._primary.tensors.keys():
            raise RecipeError(
                f"the tensors of {draft.primary.location} are not those of {self._primary.location}; no in-place swap"
            )
        todo = self._differing(draft)
        if missing := [name for name in todo if name not in self._stored]:
            raise RecipeError(
                f"{self._primary.location}: {type(self.model).__name__} keeps {missing[0]!r} and {len(missing) - 1} more tensors "
                f"under other names than the files do; merge to disk and use `lswap-eval run`"
            )
        for name, made_of in todo.items():
            if made_of.shape != self._stored[name].shape or made_of.dtype.name not in _TORCH:
                raise RecipeError(
                    f"{draft.primary.location}: {name!r} is {made_of.dtype} {list(made_of.shape)}, which does not fit into "
                    f"{list(self._stored[name].shape)} of {self._primary.location}"
                )
        evaluator = Evaluator(self._sources, kernels)
        with ThreadPoolExecutor(max(1, min(8, len(os.sched_getaffinity(0))))) as pool:
            for name in todo:
                self._held.pop(name, None)  # unknown until it is written
            written = pool.map(lambda name: self._write(evaluator, name, todo[name]), todo)
            for name in written:
                self._held[name] = todo[name]
        self._sources.check()
        return sum(map(tensor_bytes, todo.values()))

    def close(self) -> None:
        """Close the files. The model keeps its weights."""
        if self._sources is not None:
            self._sources.close()
            self._sources = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach(self, sources: Mapping[Role, Checkpoint]) -> None:
        if sources.get(self._primary.role) != self._primary:
            raise ValueError(f"the primary source, {self._primary.location}, is not among the sources")
        self.close()
        self._sources = LocalSource(sources)

    def _differing(self, draft: Draft) -> dict[str, Expression]:
        """The tensors to write. Where one parameter has two names (tied embeddings stored twice), the first counts."""
        differing = {name: made_of for name, made_of in draft.tensors.items() if self._held.get(name) != made_of}
        first: dict[int, str] = {}
        for name in self._primary.tensors:
            if name in self._stored:
                first.setdefault(self._stored[name].data_ptr(), name)
        kept = set(first.values())
        for name in [name for name in differing if name in self._stored and name not in kept]:
            self._held[name] = differing.pop(name)
        for name in [name for name in differing if name not in self._stored and name.endswith(_COMPUTED)]:
            self._held[name] = differing.pop(name)
        return differing

    def _write(self, evaluator: Evaluator, name: str, made_of: Expression) -> str:
        target = self._stored[name].reshape(-1)
        stored = _TORCH[made_of.dtype.name]
        for chunk in evaluator.chunks(made_of):
            piece = torch.frombuffer(chunk.data, dtype=torch.uint8)
            if target.dtype == stored:
                target.view(torch.uint8)[chunk.offset : chunk.offset + len(piece)].copy_(piece)
            else:  # loaded in another dtype than the files have, so rounded as loading rounds
                begin = chunk.offset // stored.itemsize
                target[begin : begin + len(piece) // stored.itemsize].copy_(piece.view(stored))
        return name

    def _check_loaded(self) -> None:
        """Raises RecipeError unless the parameters begin as in the files: loading may fuse, split or permute tensors."""
        assert self._sources is not None
        for name, held in self._stored.items():
            ref = self._primary.tensors[name]
            if ref.dtype.name not in _TORCH or tuple(held.shape) != ref.shape or not held.is_contiguous():
                raise self._transformed(name)
            stored = _TORCH[ref.dtype.name]
            data = bytearray(min(_PROBE_BYTES, ref.size_bytes))
            if not data:
                continue
            self._sources.read_into(ref, 0, memoryview(data))
            expected = torch.frombuffer(data, dtype=torch.uint8).view(stored).to(held.dtype)
            actual = held.reshape(-1)[: len(expected)].cpu()
            if not torch.equal(actual.view(torch.uint8), expected.view(torch.uint8)):
                raise self._transformed(name)

    def _transformed(self, name: str) -> RecipeError:
        return RecipeError(
            f"{self._primary.location}: {type(self.model).__name__} does not hold {name!r} as the file does; "
            f"merge to disk and use `lswap-eval run`"
        )


def _parameters(model: Any, primary: Checkpoint) -> dict[str, Tensor]:
    """Parameters and buffers, by their names in the files."""
    state = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    prefix = f"{model.base_model_prefix}."
    spelt: list[Callable[[str], str]] = [lambda name: name, lambda name: prefix + name, lambda name: name.removeprefix(prefix)]
    parameters: dict[str, Tensor] = {}
    for name in primary.tensors:
        for spelling in spelt:
            with suppress(KeyError):
                parameters[name] = state[spelling(name)]
                break
    return parameters

"""What a merge must give, written down from the specification and computed with torch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .models import Experts, Family, State

_SHARE = {"math": 0.0, "lang": 1.0}
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True)
class Setting:
    """A command line's options, and by hand what they mean: lang's weight in each of six layers and outside them."""

    name: str
    arguments: tuple[str, ...]
    shares: tuple[float, ...]
    embed: str = "math"
    norm: str = "math"
    head: str = "math"
    weight: float = 0.5

    def share_of(self, part: str) -> float:
        return _SHARE.get(part, self.weight)


STANDARD = Setting("standard", ("--bottom", "2", "--top", "1", "--transition", "1"), (1, 1, 0.5, 0, 0.5, 1))
RAMP = Setting(
    "ramp", ("--bottom", "2", "--top", "1", "--ramp", "linear", "--transition-bottom", "2"), (1, 1, 1 - 1 / 3, 1 - 2 / 3, 0, 1)
)
RAMP_TOP = Setting(
    "ramp-top", ("--bottom", "1", "--top", "1", "--ramp", "linear", "--transition-top", "2"), (1, 0, 0, 1 - 2 / 3, 1 - 1 / 3, 1)
)
WEIGHT = Setting(
    "weight", ("--bottom", "1", "--top", "2", "--transition", "1", "--weight", "0.3"), (1, 0.3, 0, 0.3, 1, 1), weight=0.3
)
EMBED_LANG = Setting("embed-lang", (*STANDARD.arguments, "--embed", "lang"), STANDARD.shares, embed="lang")
EMBED_BLEND = Setting("embed-blend", (*STANDARD.arguments, "--embed", "blend"), STANDARD.shares, embed="blend")
PARTS = Setting(
    "parts",
    ("--bottom", "3", "--embed", "lang", "--norm", "lang", "--head", "blend", "--weight", "0.7"),
    (1, 1, 1, 0, 0, 0),
    embed="lang", norm="lang", head="blend", weight=0.7,
)  # fmt: skip
HEAD_LANG = Setting("head-lang", ("--top", "2", "--head", "lang"), (0, 0, 0, 0, 1, 1), head="lang")
EXPLICIT = Setting(
    "explicit", ("--lang-layers", "0,3", "--blend-layers", "1,4-5", "--weight", "0.25"), (1, 0.25, 0, 1, 0.25, 0.25), weight=0.25
)


def same_bits(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Where two tensors are equal as bits; unlike `==`, a NaN is itself and the two zeros differ."""
    return x.view(_BITS[x.dtype]) == y.view(_BITS[y.dtype])


def blend(x: torch.Tensor, y: torch.Tensor, share: float) -> torch.Tensor:
    """Both products, their sum and the result rounded one by one; equal elements kept."""
    w1 = torch.tensor(share, dtype=torch.float32)
    w0 = 1 - w1
    from_math = w0 * x.to(torch.float32)
    from_lang = w1 * y.to(torch.float32)
    return torch.where(same_bits(x, y), x, (from_math + from_lang).to(x.dtype))


def share_of(name: str, family: Family, setting: Setting) -> float:
    """Lang's weight in the tensor of this name in `state_dict()`."""
    if name.startswith(family.stack):
        return setting.shares[int(name.removeprefix(family.stack).partition(".")[0])]
    if name in family.embed or (family.tied and name in family.head):
        return setting.share_of(setting.embed)
    if name in family.norm:
        return setting.share_of(setting.norm)
    if name in family.head:
        return setting.share_of(setting.head)
    return 0.0


def assemble(experts: Experts, setting: Setting) -> State:
    """The merged model's state."""
    state: State = {}
    for name, x in experts.math_state.items():
        share = share_of(name, experts.family, setting)
        y = experts.lang_state[name]
        state[name] = x if share == 0 else y if share == 1 else blend(x, y, share)
    return state


def assembled_model(experts: Experts, setting: Setting) -> PreTrainedModel:
    """A new model with that state."""
    family = experts.family
    model: PreTrainedModel = family.auto.from_config(family.config(), dtype=family.dtype)
    model.load_state_dict(assemble(experts, setting), strict=True)
    return model

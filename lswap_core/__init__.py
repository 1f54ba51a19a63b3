"""Take safetensors checkpoints apart and put them together: layer swapping and tensor surgery, streamed to disk.

    from lswap_core import LayerSwap, execute, lay_out, open_checkpoint

    math = open_checkpoint("models/qwen-math", role="math")
    lang = open_checkpoint("models/qwen-swahili", role="lang")
    plan = lay_out(LayerSwap(bottom=4, top=2, transition=2).draft(math=math, lang=lang))
    print(plan.summary())
    manifest = execute(plan, into="models/qwen-math-sw")

Names load on first use, so importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lswap_core.analysis.changes import ChangeMaps
    from lswap_core.checkpoint.catalogue import Checkpoint, TensorRef
    from lswap_core.engine.verifier import Diff
    from lswap_core.errors import (
        FormatError,
        LswapError,
        MismatchError,
        RecipeError,
        SelectionError,
        SourceError,
        StalePlanError,
        VerificationError,
    )
    from lswap_core.options import WriteOptions
    from lswap_core.plan.division import Part
    from lswap_core.plan.layout import lay_out
    from lswap_core.plan.manifest import Manifest
    from lswap_core.plan.plan import Plan
    from lswap_core.recipe.baselines import Soup, TaskSum, soup
    from lswap_core.recipe.draft import Draft
    from lswap_core.recipe.expressions import Average, Blend, Copy, Expression, TaskVectors
    from lswap_core.recipe.layer_swap import LayerSwap
    from lswap_core.recipe.selectors import layers, named
    from lswap_core.sources.outputs import read_manifest
    from lswap_core.sources.places import open_checkpoint
    from lswap_core.verbs.analyze import analyze
    from lswap_core.verbs.execute import execute
    from lswap_core.verbs.merge import merge, read_plan, write_plan
    from lswap_core.verbs.parts import apply_part, publish
    from lswap_core.verbs.push import push
    from lswap_core.verbs.verify import diff, verify

__version__: str

_HOME = {
    "Average": "recipe.expressions",
    "Blend": "recipe.expressions",
    "ChangeMaps": "analysis.changes",
    "Checkpoint": "checkpoint.catalogue",
    "Copy": "recipe.expressions",
    "Diff": "engine.verifier",
    "Draft": "recipe.draft",
    "Expression": "recipe.expressions",
    "FormatError": "errors",
    "LayerSwap": "recipe.layer_swap",
    "LswapError": "errors",
    "Manifest": "plan.manifest",
    "MismatchError": "errors",
    "Part": "plan.division",
    "Plan": "plan.plan",
    "RecipeError": "errors",
    "SelectionError": "errors",
    "Soup": "recipe.baselines",
    "SourceError": "errors",
    "StalePlanError": "errors",
    "TaskSum": "recipe.baselines",
    "TaskVectors": "recipe.expressions",
    "TensorRef": "checkpoint.catalogue",
    "VerificationError": "errors",
    "WriteOptions": "options",
    "analyze": "verbs.analyze",
    "apply_part": "verbs.parts",
    "diff": "verbs.verify",
    "execute": "verbs.execute",
    "lay_out": "plan.layout",
    "layers": "recipe.selectors",
    "merge": "verbs.merge",
    "named": "recipe.selectors",
    "open_checkpoint": "sources.places",
    "publish": "verbs.parts",
    "push": "verbs.push",
    "read_manifest": "sources.outputs",
    "read_plan": "verbs.merge",
    "soup": "recipe.baselines",
    "verify": "verbs.verify",
    "write_plan": "verbs.merge",
}

__all__ = [
    "Average", "Blend", "ChangeMaps", "Checkpoint", "Copy", "Diff", "Draft", "Expression", "FormatError", "LayerSwap",
    "LswapError", "Manifest", "MismatchError", "Part", "Plan", "RecipeError", "SelectionError", "Soup", "SourceError",
    "StalePlanError", "TaskSum", "TaskVectors", "TensorRef", "VerificationError", "WriteOptions", "analyze", "apply_part",
    "diff", "execute", "lay_out", "layers", "merge", "named", "open_checkpoint", "publish", "push", "read_manifest",
    "read_plan", "soup", "verify", "write_plan",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # loads an e-mail parser, which a plan does without

        return version("lswap-core")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

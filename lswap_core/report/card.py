"""The model card of an output, the command that repeats its merge, and its default name."""

from __future__ import annotations

import json
import re
import shlex

from lswap_core.checkpoint.catalogue import ADAPTER_FILE, SHARD_SUFFIX, in_order
from lswap_core.plan.manifest import Manifest
from lswap_core.plan.plan import MANIFEST_FILE, Plan, PlanSource
from lswap_core.recipe.draft import SwapRecord
from lswap_core.report.tables import layer_table, seam_table
from lswap_core.text.plain import one_line

_NAMED = 3
"""Most sources in a default name, since the length of file names is limited."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def plan_notes(plan: Plan) -> list[str]:
    """What a user should know before the plan is executed, one sentence each."""
    swap = plan.swap
    if swap is None:
        return []
    if not swap.weights:
        return list(swap.notes)
    outside = [
        f"{part}: {', '.join(names)} ({giver})" for part, (giver, names) in swap.outside.items() if names and part != "other"
    ]
    notes = [f"layers found at {swap.prefix}.0 to {swap.prefix}.{len(swap.weights) - 1}"]
    if outside:
        notes.append("outside the layers: " + "; ".join(outside))
    if len({source.name for source in plan.sources}) < len(plan.sources):
        notes.append(f"both experts are called {plan.sources[0].name!r}; --math-name and --lang-name tell them apart in the card")
    return notes + list(swap.notes)


def default_name(plan: Plan) -> str:
    """The default name of an output: `<math>+<lang>-b4u2t2`; of many sources, the first and the number of others."""
    names = {
        source.role: "+".join(part.rpartition("/")[2].removesuffix(SHARD_SUFFIX) for part in _parts(source))
        for source in plan.sources
    }
    named = [names[role] for role in in_order(names)]
    if len(named) > _NAMED:
        named[_NAMED - 1 :] = [f"{len(named) - _NAMED + 1}-more"]
    return "+".join(named) + f"-{_setting(plan.swap)}"


def _parts(source: PlanSource) -> tuple[str, ...]:
    """The sources' parts by name: the source itself, or base and adapter."""
    base, plus, adapter = source.name.rpartition("+")
    adapted = plus and any(file.name == ADAPTER_FILE for file in source.files)
    return (base, adapter) if adapted else (source.name,)


def _setting(swap: SwapRecord | None) -> str:
    if swap is None:
        return "surgery"
    options = swap.options
    if "method" in options:
        return str(options["method"])
    if "swap" in options or "revert_layers" in options:
        return "custom"
    if "lang_layers" in options or "blend_layers" in options:
        return "custom"
    text = f"b{options.get('bottom', 0)}u{options.get('top', 0)}"
    both = options.get("transition", 0)
    bottom, top = options.get("transition_bottom", both), options.get("transition_top", both)
    return text + (f"t{bottom}" if bottom == top else f"t{bottom}-{top}")


def repeat_command(plan: Plan | Manifest, swap: SwapRecord) -> str:
    """The command line that makes the same plan from the same sources, with their names as arguments."""
    words = ["lswap-core", "merge"]
    if swap.options.get("method") == "soup":
        return shlex.join([*words, *_soup(plan, swap), *_shard_size(plan)])
    for source in plan.sources:
        words += [f"--{source.role}", source.name]
    if swap.base is not None:
        words += ["--base", swap.base]
    for option, value in swap.options.items():
        words.append("--" + option.replace("_", "-"))
        if isinstance(value, list | tuple):
            words.append(",".join(map(str, value)))
        elif value is not True:
            words.append(str(value))
    return shlex.join([*words, *_shard_size(plan)])


def _soup(plan: Plan | Manifest, swap: SwapRecord) -> list[str]:
    """The options of a soup. The first expert, whose layout the output takes, is the plan's primary source."""
    weights = swap.options["weights"]
    names = {source.role: source.name for source in plan.sources}
    words = ["--method", "soup"]
    for role in weights:
        words += ["--source", f"{role}={names.get(role, role)}"]
    if len(set(weights.values())) > 1:
        words += ["--weights", ",".join(f"{role}={weight}" for role, weight in weights.items())]
    return [*words, *(["--cast"] if swap.options.get("cast") else [])]


def _shard_size(plan: Plan | Manifest) -> list[str]:
    return [] if plan.shard_size is None else ["--shard-size", str(plan.shard_size)]


def model_card(plan: Plan, manifest: Manifest) -> str:
    """Return a model card with front matter as the hub reads it. Strings are quoted as JSON, which is valid YAML."""
    bases = dict.fromkeys(part for source in plan.sources for part in _parts(source) if _HUB_ID.fullmatch(part))
    front = [*(["base_model:", *(f"- {json.dumps(base)}" for base in bases), "base_model_relation: merge"] if bases else ())]
    front += [
        "library_name: transformers",
        "tags:",
        "- merge",
        *(["- layer-swapping"] if plan.swap and plan.swap.weights else ()),
    ]
    lines = ["---", *front, "---", "", f"# {default_name(plan)}", ""]
    how = "surgery on its tensors"
    if plan.swap is not None:
        by_layers = "layer swapping (arXiv 2410.01335)" if plan.swap.weights else str(plan.swap.options["method"])
        how = f"{by_layers}, without training"
    lines += [f"Made with `lswap_core` by {how}, from:", ""]
    for source in plan.sources:
        lines += [f"- **{source.role}**: `{source.name}`" + (f", commit `{source.revision}`" if source.revision else "")]
    lines += [""]
    if plan.swap is not None:
        table = layer_table(plan.swap, plan.sizes())
        lines += ["```sh", repeat_command(plan, plan.swap), "```", "", table.to_markdown()]
        lines += [f"- {one_line(note)}" for note in plan_notes(plan)]
        if seams := seam_table(manifest, plan.swap):
            lines += ["", "How the experts differ where they are blended:", "", seams.to_markdown()]
        lines += [""]
    lines += [f"Every tensor's origin and digest is in `{MANIFEST_FILE}`; `lswap-core verify` checks them.", ""]
    return "\n".join(lines)

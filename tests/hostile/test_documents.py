"""Malformed plans and manifests are refused: `apply` and `verify` take no file's word for anything."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lswap_core import FormatError, LayerSwap, execute, lay_out, open_checkpoint, read_manifest, read_plan
from tests.build import HANG_SECONDS

from .conftest import Run, picture
from .corpus import DEEP, EMBED, LAYER_0, LAYER_2, MANY_DIGITS, NORM, SHARDS, VICTIM

Refused = Callable[..., str]
Document = dict[str, Any]
Edit = Callable[[Document], object]
MANIFEST = "lswap_manifest.json"
CARD = "README.md"
INDEX = "model.safetensors.index.json"
BLENDED = f"files/0/tensors/{VICTIM}"
COPIED = f"files/0/tensors/{EMBED}"


@pytest.fixture(scope="session")
def plan_text(experts: Path) -> str:
    """A plan that copies from both experts and blends: layer 0 is lang's, layer 1 blended, layer 2 math's."""
    math, lang = (open_checkpoint(experts / role, role=role) for role in ("math", "lang"))
    return lay_out(LayerSwap(bottom=1, transition=1).draft(math=math, lang=lang)).to_json()


# Edits: a place is a path of keys with slashes.


class Raw:
    """A value that is put into the text as it stands."""

    def __init__(self, text: str) -> None:
        self.text = text


def _to_text(document: Document) -> bytes:
    raw: list[str] = []

    def mark(value: object) -> str:
        assert isinstance(value, Raw)
        raw.append(value.text)
        return f"@raw {len(raw) - 1}@"

    text = json.dumps(document, default=mark)
    for number, value in enumerate(raw):
        text = text.replace(f'"@raw {number}@"', value)
    return text.encode()


def _holder(document: Document, place: str) -> tuple[Any, Any]:
    *keys, last = [int(key) if key.isdecimal() else key for key in place.split("/")]
    holder: Any = document
    for key in keys:
        holder = holder[key]
    assert isinstance(holder, dict) is isinstance(last, str)
    return holder, last


def put(place: str, value: object) -> Edit:
    """Set what is at `place`, which must be there and be something else."""

    def edit(document: Document) -> None:
        holder, key = _holder(document, place)
        assert holder[key] is not value
        holder[key] = value

    return edit


def add(place: str, value: object) -> Edit:
    """Set what is at `place`, which must not be there."""

    def edit(document: Document) -> None:
        holder, key = _holder(document, place)
        assert key not in holder
        holder[key] = value

    return edit


def drop(place: str) -> Edit:
    """Remove what is at `place`."""

    def edit(document: Document) -> None:
        holder, key = _holder(document, place)
        del holder[key]

    return edit


def repeat(place: str, **changes: object) -> Edit:
    """Put what is at `place`, the item of a list, into the list once more, with some keys changed."""

    def edit(document: Document) -> None:
        holder, key = _holder(document, place)
        holder.append({**copy.deepcopy(holder[key]), **changes})

    return edit


def in_header(old: str, new: str, file: int = 0) -> Edit:
    """Replace a piece of an output file's header."""

    def edit(document: Document) -> None:
        header = document["files"][file]["header"]
        assert header.count(old) == 1
        document["files"][file]["header"] = header.replace(old, new)

    return edit


@dataclass(frozen=True)
class Case:
    """One thing wrong with a document. words: in the message. tensor: the one to blame."""

    id: str
    edit: Edit
    words: str = ""
    tensor: str | None = None


def test_edits_are_edits() -> None:
    document = {"a": [{"b": 1}]}
    for edit in (put("a/0/b", 2), add("a/0/c", Raw("1e999")), repeat("a/0", b=3)):
        edit(document)
    assert _to_text(document) == b'{"a": [{"b": 2, "c": 1e999}, {"b": 3, "c": 1e999}]}'


# Text that is no document at all; plans and manifests alike.

TEXTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda text: b"", "not valid JSON"),
    "spaces": (lambda text: b"  \n", "not valid JSON"),
    "list": (lambda text: b"[" + text + b"]", "expected a JSON object"),
    "null": (lambda text: b"null", "expected a JSON object"),
    "string": (lambda text: b'"plan"', "expected a JSON object"),
    "object": (lambda text: b"{}", "'format' is None"),
    "cut": (lambda text: text.rstrip()[:-1], "not valid JSON"),
    "cut-in-the-middle": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "twice": (lambda text: text + text, "not valid JSON"),
    "bom": (lambda text: b"\xef\xbb\xbf" + text, "not valid JSON"),
    "utf-16": (lambda text: text.decode().encode("utf-16"), "not UTF-8"),
    "not-utf-8": (lambda text: text.replace(b'"math"', b'"m\xe4th"', 1), "not UTF-8"),
    "nul-behind": (lambda text: text + b"\0", "not valid JSON"),
    "nan": (lambda text: text.replace(b"0.5", b"NaN", 1), "NaN is not JSON"),
    "many-digits": (lambda text: text.replace(b"0.5", MANY_DIGITS.encode(), 1), "not valid JSON"),
    "deep-lists": (lambda text: text.replace(b"0.5", b"[" * DEEP, 1), "nested too deeply"),
    "deep-objects": (lambda text: text.replace(b"0.5", b'{"a":' * DEEP, 1), "nested too deeply"),
    "key-twice": (lambda text: text.replace(b'"swap":', b'"swap":null,"swap":', 1), "twice"),
    "inner-key-twice": (lambda text: text.replace(b'"role":', b'"role":"lang","role":', 1), "twice"),
    "name-with-nul": (lambda text: text.replace(b'"swap":', b'"\\u0000":null,"swap":', 1), "NUL"),
    "other-version": (lambda text: text.replace(b"/1", b"/2", 1), "not a "),
    "no-version": (lambda text: text.replace(b'"format"', b'"formats"', 1), "'format' is None"),
    "version-is-number": (lambda text: text.replace(b'"format": ', b'"format": 1, "was": ', 1), "'format' is 1"),
    "safetensors": (lambda text: (2).to_bytes(8, "little") + b"{}", "not valid JSON"),
}  # fmt: skip


# Plans.

HUGE = Raw("1e999")
LONG = Raw("1" * 400)
NOT_TEXT: dict[str, object] = {"null": None, "number": 5, "list": []}
NOT_SIZE: dict[str, object] = {"null": None, "text": "5", "half": 0.5, "negative": -1, "huge": HUGE, "true": True}
NOT_PLAIN = {
    "empty": "", "dot": ".", "dots": "..", "parent": "../x.safetensors", "folder": "sub/x.safetensors", "absolute": "/x.safetensors",
    "backslash": "..\\x.safetensors", "nul": "x\0.safetensors", "number": 5, "null": None, "list": ["x"], "surrogate": "\ud800.safetensors",
}  # fmt: skip
NOT_RELATIVE = {
    "empty": "", "dots": "..", "parent": "../x.json", "deep-parent": "a/../../x.json", "absolute": "/etc/passwd", "double": "a//b.json",
    "dot": "./x.json", "slash-behind": "x.json/", "backslash": "a\\b.json", "nul": "x\0", "number": 5, "null": None, "list": ["x"],
}  # fmt: skip


def _plan_cases() -> list[Case]:
    cases: list[Case] = []

    def case(id_: str, edit: Edit, words: str = "", tensor: str | None = None) -> None:
        cases.append(Case(id_, edit, words, tensor))

    for key in ("swap", "sources", "files", "sidecars", "index", "shard_size"):
        case(f"no-{key}", drop(key), f"'{key}'")
    for key in ("role", "name", "location", "files"):
        case(f"source-without-{key}", drop(f"sources/0/{key}"), f"'{key}'")
    for key in ("name", "size", "fingerprint", "mtime_ns"):
        case(f"source-file-without-{key}", drop(f"sources/1/files/0/{key}"), f"'{key}'")
    for key in ("name", "header", "tensors"):
        case(f"output-without-{key}", drop(f"files/1/{key}"), f"'{key}'")
    for key in ("name", "size", "sha256"):
        case(f"sidecar-without-{key}", drop(f"sidecars/0/{key}"), f"'{key}'")
    for key in ("options", "prefix", "shares", "outside", "notes"):
        case(f"swap-without-{key}", drop(f"swap/{key}"), f"'{key}'")
    for key in ("from", "tensors"):
        case(f"swap-outside-without-{key}", drop(f"swap/outside/embed/{key}"), f"'{key}'")
    case("copy-without-copy", put(COPIED, {}), "'copy'", EMBED)
    case("blend-without-weight", drop(f"{BLENDED}/weight"), "'weight'", VICTIM)
    case("blend-of-no-copies", put(f"{BLENDED}/blend/1", {}), "'copy'", VICTIM)

    for place in ("sources", "files", "sidecars"):
        for name, value in (
            ("null", None),
            ("object", {"a": 1}),
            ("text", "text"),
            ("number", 3),
            ("of-null", [None]),
            ("of-text", ["a"]),
        ):
            case(f"{place}-is-{name}", put(place, value))
    case("no-output", put("files", []))
    for name, value in (("list", []), ("text", "swap"), ("number", 1), ("false", False)):
        case(f"swap-is-{name}", put("swap", value))
    for key, values in {
        "options": ([], "a", 3, None), "prefix": (None, 5, []), "shares": (None, "0110", 3, ["a"], [None], [HUGE], [2], [-1], ["0.5"], {}),
        "outside": ([], None, "a", {"embed": None}, {"embed": []}), "notes": (None, "a note", 3, [None], [["a"]], {}),
    }.items():  # fmt: skip
        for number, value in enumerate(values):
            case(f"swap-{key}-{number}", put(f"swap/{key}", value))
    case("swap-outside-from-number", put("swap/outside/embed/from", 5))
    case("swap-outside-tensors-text", put("swap/outside/embed/tensors", "abc"))
    for name, value in NOT_TEXT.items():
        case(f"source-name-is-{name}", put("sources/0/name", value))
        case(f"source-location-is-{name}", put("sources/0/location", value))
        case(f"header-sha256-is-{name}", put("sources/0/files/0/fingerprint", value))
        case(f"header-is-{name}", put("files/0/header", value))
        case(f"sidecar-sha256-is-{name}", put("sidecars/0/sha256", value))
        if value is not None:
            case(f"index-is-{name}", put("index", value))
    for name, value in NOT_SIZE.items():
        case(f"source-size-is-{name}", put("sources/0/files/0/size", value))
        case(f"sidecar-size-is-{name}", put("sidecars/0/size", value))
        if name != "negative":
            case(f"mtime-is-{name}", put("sources/0/files/0/mtime_ns", value))
        if value is not None:
            case(f"shard-size-is-{name}", put("shard_size", value))
    case("shard-size-is-zero", put("shard_size", 0))
    for name, value in (
        ("unknown", "physics"), ("capital", "Math"), ("null", None), ("number", 1), ("list", ["math"]), ("path", "../math"), ("empty", ""),
        ("long", "m" * 33), ("two-lines", "ma\nth"), ("nul", "math\0"), ("surrogate", "\ud800"), ("digits-of-others", "m\u0663"),
    ):  # fmt: skip
        case(f"role-is-{name}", put("sources/0/role", value))
        case(f"host-is-{name}", put("host", value))
    average = {"average": [{"copy": ["math", SHARDS[0], "F16", 306, 314]}] * 3, "weights": [0.5, 0.25, 0.25]}
    for name, change, words in (
        ("weights-that-are-too-few", {"weights": [0.5, 0.5]}, "expected a list of 3"), ("no-weights", {"weights": None}, "weights"),
        ("weights-that-are-too-much", {"weights": [0.5, 0.5, 0.5]}, "add up to 1"), ("a-weight-of-0", {"weights": [0.5, 0.5, 0]}, "add up to 1"),
        ("a-weight-below-0", {"weights": [1, 0.5, -0.5]}, "from 0 to 1"), ("a-huge-weight", {"weights": [HUGE, 0.5, 0.5]}, ""),
        ("a-weight-of-many-digits", {"weights": [LONG, 0.5, 0.5]}, ""), ("weights-as-text", {"weights": ["0.5", "0.25", "0.25"]}, "from 0 to 1"),
        ("weights-of-lists", {"weights": [[0.5], 0.25, 0.25]}, "from 0 to 1"), ("true", {"weights": [True, 0.25, 0.25]}, ""),
        ("nothing", {"average": [], "weights": []}, "3 at least"), ("two", {"average": average["average"][:2], "weights": [0.5, 0.5]}, "3 at least"),
        ("itself", {"average": [average, average, average]}, "'copy'"), ("text", {"average": "abc"}, "expected a list"),
        ("null", {"average": None}, "expected a list"), ("nulls", {"average": [None] * 3}, "expected an object"),
        ("other-roles", {"average": [{"copy": ["physics", SHARDS[0], "F16", 306, 314]}] * 3}, "beyond what the plan's sources have"),
        ("no-roles", {"average": [{"copy": ["../x", SHARDS[0], "F16", 306, 314]}] * 3}, "is no role"),
        ("integers", {"average": [{"copy": ["math", SHARDS[0], "I16", 306, 314]}] * 3}, ""),
    ):  # fmt: skip
        case(f"average-of-{name}", put(BLENDED, average | change), words, VICTIM)
    for name, options in (
        ("no-weights", {"method": "soup"}), ("null", {"method": "soup", "weights": None}), ("list", {"method": "soup", "weights": [1, 2]}),
        ("one", {"method": "soup", "weights": {"math": 1}}), ("text", {"method": "soup", "weights": {"math": "1", "lang": "1"}}),
        ("huge", {"method": "soup", "weights": {"math": HUGE, "lang": 1}}), ("long", {"method": "soup", "weights": {"math": LONG, "lang": 1}}),
        ("no-role", {"method": "soup", "weights": {"../math": 1, "lang": 1}}), ("more", {"method": "soup", "weights": {"math": 1, "lang": 1}, "x": 1}),
        ("others", {"method": "soup", "weights": {"math": 1, "code": 1}}), ("shares", {"method": "soup", "weights": {"math": 1, "lang": 1}}),
    ):  # fmt: skip
        case(f"soup-of-{name}", put("swap/options", options), "swap")
    for name, value in NOT_PLAIN.items():
        case(f"output-name-is-{name}", put("files/0/name", value))
        case(f"source-file-name-is-{name}", put("sources/0/files/0/name", value))
    for name, value in NOT_RELATIVE.items():
        case(f"sidecar-name-is-{name}", put("sidecars/0/name", value))

    # Outputs that get in each other's way.
    case("two-outputs-of-one-name", put("files/1/name", SHARDS[0]), "one name")
    for name in ("config.json", INDEX, MANIFEST, CARD, ".lswap-partial"):
        case(f"output-called-{name}", put("files/0/name", name))
    case("two-sidecars-of-one-name", put("sidecars/1/name", "config.json"))
    case("sidecar-called-as-an-output", put("sidecars/1/name", SHARDS[0]))
    case("sidecar-called-as-the-manifest", put("sidecars/1/name", MANIFEST))
    case("two-sources-of-one-role", repeat("sources/0"))
    case("two-source-files-of-one-name", put("sources/0/files/1/name", SHARDS[0]))
    case("one-tensor-in-two-outputs", repeat("files/1", name="model-3.safetensors"), "", LAYER_2)
    for name, index in (
        ("not-json", "index"), ("empty", ""), ("of-nothing", '{"weight_map":{}}'), ("of-other-files", '{"weight_map":{"a":"../../x"}}'),
        ("list", "[]"), ("surrogate", '{"weight_map":{"\ud800":"x"}}'),
    ):  # fmt: skip
        case(f"index-text-is-{name}", put("index", index))
    case("index-missing-for-two-outputs", put("index", None))

    # Headers that do not match their tensors.
    for name, old, new, words, tensor in (
        ("not-json", "{", "", "", None), ("with-space", '{"__', ' {"__', "must begin with '{'", None),
        ("with-a-hole", "[16,24]", "[17,25]", "hole", LAYER_0), ("overlapping", "[16,24]", "[15,23]", "overlaps", LAYER_0),
        ("of-another-shape", "[4,2]", "[4,3]", "span 16 bytes", EMBED), ("of-an-unknown-dtype", f'{EMBED}":{{"dtype":"F16', f'{EMBED}":{{"dtype":"F99', "unknown dtype", EMBED),
        ("offset-missing", "[16,24]", "[16]", "data_offsets", LAYER_0), ("offsets-empty", "[16,24]", "[]", "data_offsets", LAYER_0),
        ("offsets-null", "[16,24]", "null", "data_offsets", LAYER_0), ("offsets-of-text", "[16,24]", '["16","24"]', "data_offsets", LAYER_0),
        ("offsets-negative", "[16,24]", "[-8,0]", "data_offsets", LAYER_0), ("offsets-2^64", "[24,32]", f"[24,{2**64}]", "data_offsets", VICTIM),
        ("offsets-backwards", "[16,24]", "[24,16]", "before they begin", LAYER_0), ("offsets-object", "[16,24]", '{"1":2}', "data_offsets", LAYER_0),
        ("offsets-huge", "[24,32]", "[24,1e999]", "data_offsets", VICTIM), ("shape-overflowing", "[4,2]", f"[0,{2**62},4]", "overflows", EMBED),
        ("entry-null", '{"dtype":"F16","shape":[4,2],"data_offsets":[0,16]}', "null", "must be an object", EMBED),
        ("entry-list", '{"dtype":"F16","shape":[4,2],"data_offsets":[0,16]}', "[]", "must be an object", EMBED),
        ("entry-text", '{"dtype":"F16","shape":[4,2],"data_offsets":[0,16]}', '"F16"', "must be an object", EMBED),
        ("no-offsets", ',"data_offsets":[0,16]', "", "has no 'data_offsets'", EMBED),
        ("unknown-field", ',"data_offsets":[0,16]', ',"data_offsets":[0,16],"x":1', "unknown field", EMBED),
        ("name-twice", '{"__metadata__"', f'{{"{EMBED}":null,"__metadata__"', "twice", EMBED),
        ("metadata-list", '{"format":"pt"}', "[]", "must be an object of strings", "__metadata__"),
    ):  # fmt: skip
        case(f"output-header-{name}", (lambda document: document["files"][0].update(header="x")) if name == "not-json" else in_header(old, new),
             words, tensor)  # fmt: skip
    for name, header in (("empty", ""), ("list", "[]"), ("object", "{}"), ("surrogate", "{\ud800}"), ("deep", '{"a":' * DEEP)):
        case(f"output-header-is-{name}", put("files/0/header", header))
    case("tensor-without-source", drop(COPIED), "", None)
    case(
        "tensor-without-entry",
        add("files/0/tensors/model.extra.weight", {"copy": ["math", SHARDS[0], "F16", 282, 298]}),
        "",
        None,
    )
    case("tensor-of-another-dtype", put(f"{COPIED}/copy/2", "BF16"), "BF16", EMBED)
    case("tensors-swapped", put(COPIED, {"copy": ["math", SHARDS[0], "F16", 298, 306]}), "does not hold", EMBED)
    for name, value in (("null", None), ("list", []), ("text", "all"), ("number", 5)):
        case(f"tensors-is-{name}", put("files/0/tensors", value))
        case(f"expression-is-{name}", put(COPIED, value), "", EMBED)

    # Ranges outside the sources, and other references to what is not there.
    for name, begin, end, words in (
        ("beyond-the-end", 300, 316, "beyond what the plan's sources have"), ("at-2^62", 2**62, 2**62 + 16, "beyond"), ("backwards", 298, 282, ""),
        ("negative", -16, 0, ""), ("too-short", 282, 297, "does not hold"), ("too-long", 282, 299, "does not hold"), ("float", 282.0, 298.0, ""),
        ("text", "282", "298", ""), ("true", True, 17, ""), ("null", None, None, ""), ("huge", 282, HUGE, ""), ("lists", [282], [298], ""),
        ("2^64", 2**64, 2**64 + 16, ""),
    ):  # fmt: skip
        case(f"range-{name}", put(f"{COPIED}/copy", ["math", SHARDS[0], "F16", begin, end]), words, EMBED)
    blended = put(f"{BLENDED}/blend/1/copy", ["lang", SHARDS[0], "F16", 307, 315])
    case("range-of-a-blend-beyond-the-end", blended, "beyond what the plan's sources have", VICTIM)
    case("size-of-the-source-smaller", put("sources/0/files/1/size", 200), "beyond what the plan's sources have", NORM)
    for name, value in (
        ("file-unknown", ["math", "x.safetensors", "F16", 282, 298]), ("file-outside", ["math", f"../lang/{SHARDS[0]}", "F16", 282, 298]),
        ("file-null", ["math", None, "F16", 282, 298]), ("role-unknown", ["physics", SHARDS[0], "F16", 282, 298]),
        ("role-absent", ["base", SHARDS[0], "F16", 282, 298]), ("role-null", [None, SHARDS[0], "F16", 282, 298]),
        ("dtype-unknown", ["math", SHARDS[0], "F99", 282, 298]), ("dtype-null", ["math", SHARDS[0], None, 282, 298]),
        ("dtype-list", ["math", SHARDS[0], ["F16"], 282, 298]), ("four", ["math", SHARDS[0], "F16", 282]),
        ("six", ["math", SHARDS[0], "F16", 282, 298, 0]), ("empty", []), ("null", None), ("text", "mathx"), ("number", 5), ("object", {}),
    ):  # fmt: skip
        case(f"copy-{name}", put(f"{COPIED}/copy", value), "", EMBED)
    for name, value in (
        ("null", None),
        ("unknown", "F99"),
        ("list", ["F16"]),
        ("to-another", "BF16"),
        ("to-integers", "I16"),
        ("number", 16),
    ):
        case(f"cast-is-{name}", add(f"{COPIED}/cast", value), "", EMBED)

    # Blends.
    for name, value in (
        ("zero", 0), ("one", 1), ("negative", -0.5), ("above", 1.5), ("text", "0.5"), ("null", None), ("true", True), ("list", [0.5]),
        ("huge", HUGE), ("long", LONG), ("zero-float", 0.0), ("one-float", 1.0), ("minus-zero", Raw("-0.0")), ("tiny", Raw("1e-999")),
    ):  # fmt: skip
        case(f"weight-is-{name}", put(f"{BLENDED}/weight", value), "", VICTIM)
    case("blend-of-one", drop(f"{BLENDED}/blend/1"), "", VICTIM)
    case("blend-of-three", repeat(f"{BLENDED}/blend/1"), "", VICTIM)
    for name, value in (("null", None), ("text", "ab"), ("object", {}), ("of-null", [None, None]), ("number", 2)):
        case(f"blend-is-{name}", put(f"{BLENDED}/blend", value), "", VICTIM)
    case("blend-of-two-dtypes", put(f"{BLENDED}/blend/1/copy/2", "BF16"), "", VICTIM)

    def integers(document: Document) -> None:
        in_header(f'"{VICTIM}":{{"dtype":"F16"', f'"{VICTIM}":{{"dtype":"I16"')(document)
        for side in (0, 1):
            put(f"{BLENDED}/blend/{side}/copy/2", "I16")(document)

    case("blend-of-integers", integers, "cannot be blended", VICTIM)
    return cases


PLAN_CASES = _plan_cases()


def test_the_unspoilt_plan_applies(tmp_path: Path, plan_text: str) -> None:
    (tmp_path / "plan.json").write_bytes(_to_text(json.loads(plan_text)))
    plan = read_plan(tmp_path / "plan.json")
    assert plan.to_json() == plan_text
    execute(plan, into=tmp_path / "merged")
    assert (tmp_path / "merged" / MANIFEST).is_file()


def test_plan_cases_have_names_of_their_own() -> None:
    assert len({case.id for case in PLAN_CASES}) == len(PLAN_CASES) >= 200


@pytest.mark.parametrize("case", PLAN_CASES, ids=lambda case: case.id)
def test_applying_refuses(tmp_path: Path, plan_text: str, case: Case, refused: Refused) -> None:
    document = json.loads(plan_text)
    case.edit(document)
    path = tmp_path / "plan.json"
    path.write_bytes(_to_text(document))
    line = refused("apply", path, "--out", tmp_path / "merged")
    assert line.startswith(f"lswap-core: error: {path}: ")
    assert case.words in line
    with pytest.raises(FormatError) as caught:
        read_plan(path)
    assert caught.value.path.startswith(str(path))
    if case.tensor is not None:
        assert f"tensor {case.tensor!r}: " in line
        assert caught.value.tensor == case.tensor


@pytest.mark.parametrize("id_", TEXTS)
def test_applying_refuses_what_is_no_plan(tmp_path: Path, plan_text: str, id_: str, refused: Refused) -> None:
    spoil, words = TEXTS[id_]
    text = plan_text.encode()
    path = tmp_path / "plan.json"
    path.write_bytes(spoil(text))
    assert path.read_bytes() != text
    line = refused("apply", path, "--out", tmp_path / "merged")
    assert line.startswith(f"lswap-core: error: {path}: ")
    assert words in line


def test_applying_a_manifest_is_refused(tmp_path: Path, merged: Path, refused: Refused) -> None:
    assert "'lswap-manifest/1'" in refused("apply", merged / MANIFEST, "--out", tmp_path / "again")


# Manifests.


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory, plan_text: str) -> Iterator[Path]:
    """A merged checkpoint, that nothing may change."""
    folder = tmp_path_factory.mktemp("merged")
    (folder / "plan.json").write_text(plan_text, encoding="utf-8")
    execute(read_plan(folder / "plan.json"), into=folder / "out")
    before = picture(folder)
    yield folder / "out"
    assert picture(folder) == before, "the output was changed"


@pytest.fixture
def output(merged: Path, tmp_path: Path) -> Path:
    """It once more, with a manifest to be spoilt; the other files are links, to be replaced and never written to."""
    root = tmp_path / "out"
    root.mkdir()
    for file in merged.iterdir():
        if file.name == MANIFEST:
            shutil.copy(file, root)
        else:
            (root / file.name).hardlink_to(file)
    return root


def _manifest_cases() -> list[Case]:
    cases: list[Case] = []
    tensor = f"tensors/{EMBED}"
    blend = f"tensors/{VICTIM}"

    def case(id_: str, edit: Edit, words: str = "", tensor: str | None = None) -> None:
        cases.append(Case(id_, edit, words, tensor))

    for key in ("tool", "plan_sha256", "swap", "sources", "shards", "sidecars", "tensors"):
        case(f"no-{key}", drop(key), f"'{key}'")
    for key in ("role", "name", "files"):
        case(f"source-without-{key}", drop(f"sources/0/{key}"), f"'{key}'")
    for place in ("sources/0/files", "shards", "sidecars"):
        checksum = "header_sha256" if place == "shards" else "sha256"
        for key in ("name", "size", checksum):
            case(f"{place.replace('/', '-')}-without-{key}", drop(f"{place}/0/{key}"), f"'{key}'")
            if key == "size":
                for name, value in NOT_SIZE.items():
                    case(f"{place.replace('/', '-')}-size-is-{name}", put(f"{place}/0/size", value))
            if key == checksum:
                for name, value in NOT_TEXT.items():
                    case(f"{place.replace('/', '-')}-{key}-is-{name}", put(f"{place}/0/{key}", value))
    for name, value in NOT_TEXT.items():
        case(f"shards-sha256-is-{name}", add("shards/0/sha256", value))
    for key in ("file", "dtype", "shape", "begin", "end", "made_of"):
        case(f"tensor-without-{key}", drop(f"{tensor}/{key}"), f"'{key}'", EMBED)
    for key in (
        "count", "differing", "sum_abs", "sum_squares", "max_abs", "dot", "x_squares", "y_squares", "x_nonfinite", "y_nonfinite",
    ):  # fmt: skip
        case(f"statistics-without-{key}", drop(f"{blend}/statistics/{key}"), f"'{key}'", VICTIM)
    for place in ("sources", "shards", "sidecars", "tensors"):
        for name, value in (("null", None), ("text", "text"), ("number", 3), ("of-null", [None])):
            case(f"{place}-is-{name}", put(place, value))
    for place in ("tool", "plan_sha256", "sources/0/name"):
        for name, value in NOT_TEXT.items():
            case(f"{place.replace('/', '-')}-is-{name}", put(place, value))
    for name, value in (("unknown", "physics"), ("null", None), ("list", ["math"])):
        case(f"role-is-{name}", put("sources/0/role", value))
    for name, value in NOT_PLAIN.items():
        case(f"shard-name-is-{name}", put("shards/0/name", value))
        case(f"tensor-file-is-{name}", put(f"{tensor}/file", value), "", None if name == "surrogate" else EMBED)
    for name, value in NOT_RELATIVE.items():
        case(f"sidecar-name-is-{name}", put("sidecars/0/name", value))
    case("two-shards-of-one-name", put("shards/1/name", SHARDS[0]))
    case("two-sources-of-one-role", repeat("sources/0"))
    case("tensor-in-no-shard", put(f"{tensor}/file", "model-3.safetensors"), "", EMBED)
    case("tensor-in-a-sidecar", put(f"{tensor}/file", "config.json"), "", EMBED)
    for name, value in (("null", None), ("list", []), ("text", "all"), ("number", 5), ("object", {})):
        case(f"tensor-is-{name}", put(tensor, value), "", EMBED)
    for name, value in (("unknown", "F99"), ("null", None), ("list", ["F16"]), ("another", "BF16"), ("wider", "F32")):
        case(f"dtype-is-{name}", put(f"{tensor}/dtype", value), "", EMBED)
    for name, value in (
        ("null", None), ("text", "42"), ("of-text", ["4", "2"]), ("of-floats", [4.5, 2.5]), ("negative", [-4, -2]), ("huge", [HUGE, 2]),
        ("number", 8), ("larger", [4, 3]), ("overflowing", [2**62, 4]), ("of-null", [None]), ("true", [True, 8]), ("nested", [[4, 2]]),
    ):  # fmt: skip
        case(f"shape-is-{name}", put(f"{tensor}/shape", value), "", EMBED)
    for name, begin, end in (
        ("text", "282", "298"), ("float", 282.5, 298.5), ("null", None, None), ("negative", -16, 0), ("backwards", 298, 282), ("huge", 282, HUGE),
        ("too-short", 282, 297), ("too-long", 282, 299), ("far-too-long", 0, 2**62), ("empty", 282, 282), ("true", True, 17),
        ("beyond-the-shard", 300, 316), ("far-beyond-the-shard", 2**62, 2**62 + 16), ("2^64", 2**64, 2**64 + 16),
    ):  # fmt: skip
        case(
            f"range-is-{name}",
            (lambda b, e: lambda document: document["tensors"][EMBED].update(begin=b, end=e))(begin, end),
            "",
            EMBED,
        )
    for name, value in NOT_TEXT.items():
        case(f"digest-is-{name}", put(f"{tensor}/digest", value), "", EMBED)
    for name, value in (
        ("null", None), ("empty", {}), ("text", "copy"), ("of-unknown-role", {"copy": ["physics", SHARDS[0], "F16", 282, 298]}),
        ("of-another-size", {"copy": ["math", SHARDS[0], "F16", 282, 297]}), ("of-another-dtype", {"copy": ["math", SHARDS[0], "BF16", 282, 298]}),
        ("beyond-the-source", {"copy": ["math", SHARDS[0], "F16", 300, 316]}), ("of-an-unknown-file", {"copy": ["math", "x", "F16", 282, 298]}),
        ("of-an-absent-role", {"copy": ["base", SHARDS[0], "F16", 282, 298]}), ("negative", {"copy": ["math", SHARDS[0], "F16", -16, 0]}),
    ):  # fmt: skip
        case(f"made-of-{name}", put(f"{tensor}/made_of", value), "", EMBED)
    for name, value in (
        ("one", 1),
        ("above", 1.5),
        ("negative", -1),
        ("huge", HUGE),
        ("long", LONG),
        ("null", None),
        ("text", "0.5"),
    ):
        case(f"weight-is-{name}", put(f"{blend}/made_of/weight", value), "", VICTIM)
    for name, value in (("text", "none"), ("list", []), ("number", 3), ("empty", {})):
        case(f"statistics-is-{name}", put(f"{blend}/statistics", value), "", VICTIM)
    for name, value in NOT_SIZE.items():
        case(f"count-is-{name}", put(f"{blend}/statistics/count", value), "", VICTIM)
    for name, value in (("null", None), ("text", "much"), ("list", [1.0]), ("true", True), ("long", LONG)):
        case(f"sum-is-{name}", put(f"{blend}/statistics/sum_abs", value), "", VICTIM)
    return cases


MANIFEST_CASES = _manifest_cases()


def test_the_unspoilt_manifest_verifies(experts: Path, output: Path, command: Run) -> None:
    text = (output / MANIFEST).read_text(encoding="utf-8")
    (output / MANIFEST).write_bytes(_to_text(json.loads(text)))
    assert read_manifest(output).to_json() == text
    assert command("verify", output).status == 0
    assert command("verify", output, "--math", experts / "math", "--lang", experts / "lang").status == 0


def test_manifest_cases_have_names_of_their_own() -> None:
    assert len({case.id for case in MANIFEST_CASES}) == len(MANIFEST_CASES) >= 150


@pytest.mark.parametrize("case", MANIFEST_CASES, ids=lambda case: case.id)
def test_verifying_refuses(output: Path, case: Case, refused: Refused) -> None:
    path = output / MANIFEST
    document = json.loads(path.read_bytes())
    case.edit(document)
    path.write_bytes(_to_text(document))
    line = refused("verify", output)
    assert line.startswith(f"lswap-core: error: {path}: ")
    assert case.words in line
    with pytest.raises(FormatError) as caught:
        read_manifest(output)
    assert caught.value.path == str(path)
    if case.tensor is not None:
        assert f"tensor {case.tensor!r}: " in line
        assert caught.value.tensor == case.tensor


@pytest.mark.parametrize("id_", TEXTS)
def test_verifying_refuses_what_is_no_manifest(output: Path, id_: str, refused: Refused) -> None:
    spoil, words = TEXTS[id_]
    path = output / MANIFEST
    text = path.read_bytes()
    path.write_bytes(spoil(text))
    assert path.read_bytes() != text
    line = refused("verify", output)
    assert line.startswith(f"lswap-core: error: {path}: ")
    assert words in line


def test_a_tensor_that_the_manifest_hides_is_found(output: Path, refused: Refused) -> None:
    document = json.loads((output / MANIFEST).read_bytes())
    drop(f"tensors/{LAYER_2}")(document)
    (output / MANIFEST).write_bytes(_to_text(document))
    assert repr(LAYER_2) in refused("verify", output, status=6)


# An output whose files are not files. A process of its own, since a pipe that nobody writes to never ends.


@pytest.mark.parametrize("file", [MANIFEST, "config.json", SHARDS[1], "extra.safetensors"])
def test_verifying_does_not_wait_for_a_pipe(output: Path, file: str) -> None:
    (output / file).unlink(missing_ok=True)
    os.mkfifo(output / file)
    done = _in_a_process("verify", str(output))
    assert done.returncode == (3 if file == MANIFEST else 6), done
    assert len(done.stderr.splitlines()) == 1
    assert file in done.stderr


def test_verifying_does_not_read_a_device(output: Path) -> None:
    (output / "config.json").unlink()
    (output / "config.json").symlink_to("/dev/zero")
    done = _in_a_process("verify", str(output))
    assert done.returncode == 6, done
    assert "config.json" in done.stderr


def test_verifying_follows_no_link_out_of_the_output(output: Path, tmp_path: Path, refused: Refused) -> None:
    for file in ("config.json", SHARDS[1]):
        (output / file).rename(tmp_path / file)
        (output / file).symlink_to(tmp_path / file)
    line = refused("verify", output, status=6)
    assert "config.json" in line
    assert SHARDS[1] in line


def test_a_directory_is_no_manifest(output: Path, refused: Refused) -> None:
    (output / MANIFEST).unlink()
    (output / MANIFEST).mkdir()
    assert MANIFEST in refused("verify", output, status=1)


def _in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "lswap_core", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)

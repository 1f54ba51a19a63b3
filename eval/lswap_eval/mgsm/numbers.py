"""Reads numbers as people and models write them, exactly.

`make_plain` first turns decimal digits of any script into ASCII, makes full-width punctuation ASCII, and drops invisible
characters. Numbers are then read with the separators of every locale, because a model that answers in German may group as in
English: comma, point, space, apostrophe, and the Indian 1,14,200. A single separator before exactly three digits groups them
(2.125 is 2125), unless a zero precedes it. Any other single separator is decimal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_PLAIN = str.maketrans(
    "：，．％＄＃＝＋－−﹣‐‑（）＊／［］｛｝＼？！；≈≒∶\u00a0\u202f\u2009\u2007\u2008\u3000’ʼ＇٬٫",
    ":,.%$#=+-----()*/[]{}\\?!;==:      ''',.",
)
_LATEX = (
    (re.compile(r"\\[,!;: ]|\{,\}|(?<=\d)~(?=\d)"), lambda match: "," if match[0] == "{,}" else ""),
    (re.compile(r"\\d?frac\{(-?[\d.,]+)\}\{([\d.,]+)\}"), lambda match: f"{match[1]}/{match[2]}"),
    (re.compile(r"\\(?:text|textbf|mathbf|mathrm)\{([^{}]*)\}"), lambda match: f" {match[1]} "),
    (re.compile(r"\\([$%])"), lambda match: match[1]),
)
_GROUPED = [re.compile(rf"([1-9]\d{{0,2}}(?:{mark}\d{{3}})+)(?:([.,])(\d+))?(?!{mark}?\d)") for mark in (",", r"\.", " ", "'")]
_INDIAN = re.compile(r"([1-9]\d?(?:,\d{2})+,\d{3})(?:\.(\d+))?(?!,?\d)")
_SIMPLE = re.compile(r"(\d+)(?:[.,](\d+))?(?![.,]?\d)")
_WHOLE = re.compile(r"\d+")
_LISTED = re.compile(r"(?<=\d[.,'])\d+")  # the rest of a run of digits that is not one number, as in 1,2,3
_BARE_DECIMAL = re.compile(r"\.(\d+)(?![.,]?\d)")
_RATIO = re.compile(r"/(\d+)(?![\d/]|[.,]\d)")
_MIXED = re.compile(r"(?<![\d/.,])(\d+) (\d{1,2})/(\d{1,2})(?![\d/]|[.,]\d)")
_START = re.compile(rf"\d|(?<![\w.,)]){_BARE_DECIMAL.pattern}")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text, and its half-open range of characters, including sign and currency."""

    value: Fraction
    start: int
    end: int


def make_plain(text: str) -> str:
    """Return `text` in NFC, with ASCII digits, punctuation of one width, and no invisible characters.

    >>> make_plain("答えは１８。"), make_plain("উত্তর হল ১৮।")[-3:]
    ('答えは18。', '18।')
    """
    kept = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    plain = "".join(c if (digit := unicodedata.decimal(c, None)) is None else str(digit) for c in kept).translate(_PLAIN)
    for pattern, replacement in _LATEX:
        plain = pattern.sub(replacement, plain)
    return plain


def find_numbers(plain: str, start: int = 0, end: int | None = None) -> Iterator[Number]:
    """Numbers of a text that `make_plain` made, from left to right.

    >>> [str(number.value) for number in find_numbers("1,14,200 and -1.8, 2 125, 5-3, 3/4 and $1,234.50")]
    ['114200', '-9/5', '2125', '5', '3', '3/4', '2469/2']
    """
    at, end = start, len(plain) if end is None else end
    while (begin := _START.search(plain, at, end)) is not None:
        value, at = _magnitude(plain, begin.start(), end)
        first, negative = _sign(plain, begin.start(), start)
        yield Number(-value if negative else value, first, at)


def _magnitude(plain: str, start: int, end: int) -> tuple[Fraction, int]:
    if (mixed := _MIXED.match(plain, start, end)) and int(mixed[2]) < int(mixed[3]):
        return int(mixed[1]) + Fraction(int(mixed[2]), int(mixed[3])), mixed.end()
    value, at = _decimal(plain, start, end)
    if (ratio := _RATIO.match(plain, at, end)) and int(ratio[1]):
        return value / int(ratio[1]), ratio.end()
    return value, at


def _decimal(plain: str, start: int, end: int) -> tuple[Fraction, int]:
    if listed := _LISTED.match(plain, start, end):
        return Fraction(listed[0]), listed.end()
    if bare := _BARE_DECIMAL.match(plain, start, end):
        return _join("0", bare[1]), bare.end()
    for pattern in _GROUPED:
        match = pattern.match(plain, start, end)
        if match and not (match[2] and match[2] in match[1]):  # 1,234,50 is neither grouped nor decimal
            return _join(re.sub(r"\D", "", match[1]), match[3]), match.end()
    if indian := _INDIAN.match(plain, start, end):
        return _join(indian[1].replace(",", ""), indian[2]), indian.end()
    match = _SIMPLE.match(plain, start, end) or _WHOLE.match(plain, start, end)
    assert match is not None, "a number starts with a digit or a point"
    return _join(match[1], match[2]) if match.re is _SIMPLE else Fraction(match[0]), match.end()


def _join(whole: str, decimals: str | None) -> Fraction:
    return Fraction(f"{whole}.{decimals}" if decimals else whole)


def _sign(plain: str, start: int, low: int) -> tuple[int, bool]:
    """Where the number starts, with sign and currency, and whether it is negative.

    A minus is a sign where no operand precedes it. A hyphen in a word, a range and a bullet are not signs.
    """
    at = start
    while at > low and (plain[at - 1] in "+" or unicodedata.category(plain[at - 1]) == "Sc"):
        at -= 1
    if at == low or plain[at - 1] not in "-–":
        spaced = plain[low:at].rstrip()
        if spaced.endswith("-") and spaced[:-1].rstrip().endswith(("=", "(")):
            return len(spaced) - 1 + low, True
        return at, False
    before = plain[low : at - 1]
    operand = before.rstrip()[-1:]
    glued = before[-1:].isalnum()
    return (at, False) if glued or operand.isdigit() or operand in (")", "%") else (at - 1, True)

"""Tensor order and header padding of files with a new layout, chosen so that filesystems can share most extents with the
sources.

Only catalogues decide, so the layout is the same on every machine.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from lswap_core.checkpoint.header import build_header, reference_order, size_in_bytes
from lswap_core.plan.plan import OutputFile
from lswap_core.plan.runs import BLOCK_BYTES, runs
from lswap_core.recipe.expressions import Copy, Expression

_ALIGNMENT = 8
"""Alignment of the data in a file, and the size of the largest dtype, in bytes."""


def split(made_of: Mapping[str, Expression], most_bytes: int) -> list[list[str]]:
    """Divide the names, in order, into as few files as possible of at most `most_bytes` of tensors each. A larger tensor gets
    a file of its own.

    The copies that a file can share all have one phase: their offset in the source minus that in the output, modulo the block
    size. A cut is therefore made where the phase changes (at another source file, or at a tensor that was left out), if the
    number of files stays the same.
    """
    names = list(made_of)
    begins = list(accumulate((_size(made_of[name]) for name in names), initial=0))
    ends = [0] * len(names)
    files_needed = [0] * (len(names) + 1)
    end = len(names)
    for at in reversed(range(len(names))):
        while end > at + 1 and begins[end] - begins[at] > most_bytes:
            end -= 1
        ends[at], files_needed[at] = end, 1 + files_needed[end]
    seams: list[int] = []
    phase = None
    for at, name in enumerate(names):
        if _is_copied(made_of[name]):
            before, phase = phase, (made_of[name].refs[0].begin - begins[at]) % BLOCK_BYTES
            if before not in (None, phase):
                seams.append(at)
    groups, at = [], 0
    while at < len(names):
        inside = seams[bisect_right(seams, at) : bisect_left(seams, ends[at])]
        cut = next((seam for seam in reversed(inside) if files_needed[seam] < files_needed[at]), ends[at])
        groups.append(names[at:cut])
        at = cut
    return groups or [[]]


def arrange(name: str, made_of: Mapping[str, Expression], metadata: Mapping[str, str]) -> OutputFile:
    """Return the file that holds these tensors, each aligned to the size of its dtype, the first one to 8 bytes.

    Runs of a source stay together. Up to 4,095 spaces pad the header, so that as many whole blocks as possible are at the
    same offset within a block as in their source. Where another order than the reference serialiser's gains nothing, the file
    has the reference's order. Where no block can be shared, the file has the reference's bytes.
    """
    orders = [reference_order({t: (e.dtype, e.shape) for t, e in made_of.items()}), run_order(made_of)]
    choices = [_file(name, order, made_of, metadata) for order in (orders if orders[0] != orders[1] else orders[:1])]
    file, (padding, _) = max(((file, best_padding(file)) for file in choices), key=lambda choice: choice[1][1])
    return replace(file, header=replace(file.header, raw=file.header.raw + b" " * padding))


def best_padding(file: OutputFile) -> tuple[int, int]:
    """Return the number of spaces that lets most bytes be shared in whole blocks, and that number of bytes. Of equal gains,
    the fewest spaces.
    """
    gains = Counter({0: 0})
    for run in runs(file.steps()):
        padding = (run.source.begin - run.begin) % BLOCK_BYTES
        if run.copied and padding % _ALIGNMENT == 0:
            begin, end = run.source.begin, run.source.begin + run.size_bytes
            gains[padding] += max(0, end // BLOCK_BYTES - -(-begin // BLOCK_BYTES)) * BLOCK_BYTES
    return max(gains.items(), key=lambda gain: (gain[1], -gain[0]))


def run_order(made_of: Mapping[str, Expression]) -> list[str]:
    """Names in an order that keeps neighbours in a source together, as far as every tensor stays aligned to the size of its
    dtype.

    Runs are cut into pieces where alignment requires it. Pieces whose size divides by the largest power of two come first,
    then the order of names decides.
    """
    pieces = [piece for chain in _chains(made_of) for piece in _aligned_pieces(chain, made_of)]
    pieces.sort(key=lambda piece: -_roundness(sum(_size(made_of[name]) for name in piece)))
    return [name for piece in pieces for name in piece]


def _file(name: str, order: Sequence[str], made_of: Mapping[str, Expression], metadata: Mapping[str, str]) -> OutputFile:
    header = build_header({t: (made_of[t].dtype, made_of[t].shape) for t in order}, metadata)
    return OutputFile(name, header, tuple(made_of[t] for t in order))


def _chains(made_of: Mapping[str, Expression]) -> Iterator[list[str]]:
    """Chains of copied tensors whose bytes are neighbours in a source, in the source's order. Every other tensor is a chain
    of its own. Chains are in the order of their first names.
    """
    place = {name: number for number, name in enumerate(made_of)}
    copied = [(e.refs[0], name) for name, e in made_of.items() if _is_copied(e)]
    copied.sort(key=lambda c: (c[0].role, c[0].file, c[0].begin, c[0].end, place[c[1]]))
    chains: list[list[str]] = [[name] for name in made_of.keys() - {name for _, name in copied}]
    before = None
    for ref, name in copied:
        if before is not None and (before.role, before.file, before.end) == (ref.role, ref.file, ref.begin):
            chains[-1].append(name)
        else:
            chains.append([name])
        before = ref
    return iter(sorted(chains, key=lambda chain: min(place[name] for name in chain)))


def _aligned_pieces(chain: Sequence[str], made_of: Mapping[str, Expression]) -> Iterator[list[str]]:
    """Cut the chain into as few pieces as possible such that each tensor is aligned where its piece begins aligned, and such
    that the size of each piece keeps the next one aligned.
    """
    at = 0
    while at < len(chain):
        size, alignment, cut = 0, 1, at + 1
        for end in range(at, len(chain)):
            own = max(1, made_of[chain[end]].dtype.bits // 8)
            if size % own:
                break
            alignment, size = max(alignment, own), size + _size(made_of[chain[end]])
            if _roundness(size) >= alignment:
                cut = end + 1
        yield list(chain[at:cut])
        at = cut


def _is_copied(expression: Expression) -> bool:
    return isinstance(expression, Copy) and expression.cast is None


def _roundness(size: int) -> int:
    """The largest power of two, at most 8, that divides `size`."""
    return _ALIGNMENT if size % _ALIGNMENT == 0 else size & -size


def _size(expression: Expression) -> int:
    if isinstance(expression, Copy) and expression.cast is None:
        return expression.ref.end - expression.ref.begin
    return size_in_bytes(expression.dtype, expression.shape)

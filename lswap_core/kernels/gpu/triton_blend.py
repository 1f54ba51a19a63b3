"""The blend kernels in Triton. `lswap_core.kernels.reference` defines what they compute; this text says how.

The sums have the same bits as the reference's. In a block of 1,024 elements each of 16 lanes adds up 64 terms in order. The
kernel therefore walks a tile row by row and accumulates in a tensor of lanes, (blocks, 16): no reduction is left whose order
the compiler could choose. It loads four rows of a block (128 bytes of 16-bit elements) at once, so that a warp reads whole
cache lines. Triton then moves them through shared memory to the threads that own their lanes.

The first walk over a tile assumes that all values are finite. If the sums show otherwise, a careful walk follows. The tail of
a tensor, and a tensor that is not 16-byte aligned, take the careful walk too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lswap_core.kernels.gpu.triton_formats import decode, encode, inlined, operand

LANES = tl.constexpr(16)
BLOCK = tl.constexpr(1024)
RECORD = tl.constexpr(8)
STATISTICS = tl.constexpr(10)
NO_GRID = tl.constexpr(4096)
UNROLLED = tl.constexpr(32)


@triton.jit
def tile_kernel(
    records: tl.tensor,
    tile_owners: tl.tensor,
    sums: tl.tensor,
    tallies: tl.tensor,
    all_blocks: tl.tensor,
    FORMAT: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    CAREFUL_ROWS: tl.constexpr,
    WRITE: tl.constexpr,
) -> None:
    """One tile: out, five sums for each block, and the tile's tallies. For the tables see `lswap_core.kernels.gpu.batch`.

    records: int64 (tensors, 8). tile_owners: int32 (tiles), one per program. sums: fp64 (5, all_blocks). tallies: fp64 (19,
    tiles). FORMAT: name of the dtype. BLOCKS: blocks in a tile. ROWS: rows of 16 elements that are loaded at once;
    CAREFUL_ROWS: the same in the careful walk. WRITE: whether there is an out.
    """
    tile = tl.program_id(0)
    record = records + tl.load(tile_owners + tile) * RECORD
    x, y, out, elements = tl.load(record), tl.load(record + 1), tl.load(record + 2), tl.load(record + 3)
    first_block = (tile - tl.load(record + 4)) * BLOCKS
    begin = first_block * BLOCK
    sums += tl.load(record + 5) + first_block
    careful = ((x | y | out) % 16 != 0) | (begin + BLOCKS * BLOCK > elements)
    if not careful:
        finite = _walk(record, begin, elements, sums, tallies, all_blocks, FORMAT, BLOCKS, ROWS, WRITE, False)
        careful = not finite
    if careful:
        tl.debug_barrier()  # another thread may have written an element that this thread is about to write
        _walk(record, begin, elements, sums, tallies, all_blocks, FORMAT, BLOCKS, CAREFUL_ROWS, WRITE, True)


@inlined
def _walk(
    record: tl.tensor,
    begin: tl.tensor,
    elements: tl.tensor,
    sums: tl.tensor,
    tallies: tl.tensor,
    all_blocks: tl.tensor,
    FORMAT: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    WRITE: tl.constexpr,
    CAREFUL: tl.constexpr,
) -> tl.tensor:
    """Process the tile whose first element is `begin`. Returns whether its sums of squares are finite."""
    x = operand(record, begin, FORMAT, not CAREFUL)
    y = operand(record + 1, begin, FORMAT, not CAREFUL)
    out = operand(record + 2, begin, FORMAT, not CAREFUL)
    COMPUTE: tl.constexpr = tl.float64 if FORMAT == "F64" else tl.float32
    w0, w1 = _share(record + 6, COMPUTE), _share(record + 7, COMPUTE)
    left = tl.minimum(elements - begin, BLOCKS * BLOCK).to(tl.int32)
    zeros = tl.zeros([BLOCKS, LANES], COMPUTE)
    lanes = (zeros, zeros, zeros, zeros, zeros)
    largest, differing, x_nonfinite, y_nonfinite = zeros, zeros, zeros, zeros
    for step in range(BLOCK // (ROWS * LANES)):
        columns = step * (ROWS * LANES) + tl.arange(0, ROWS * LANES)[None, :]
        at = tl.arange(0, BLOCKS)[:, None] * BLOCK + columns
        if CAREFUL:
            x_bits = tl.load(x + at, mask=at < left, other=0)
            y_bits = tl.load(y + at, mask=at < left, other=0)
        else:
            x_bits = tl.load(x + at, eviction_policy="evict_first")
            y_bits = tl.load(y + at, eviction_policy="evict_first")
        if WRITE:
            mixed = encode(w0 * decode(x_bits, FORMAT) + w1 * decode(y_bits, FORMAT), FORMAT, CAREFUL)
            mixed = tl.where(x_bits == y_bits, x_bits, mixed)
            if CAREFUL:
                tl.store(out + at, mixed, mask=at < left)
            else:
                tl.store(out + at, mixed, eviction_policy="evict_first")
        x_rows, y_rows = _rows(x_bits, y_bits, BLOCKS, ROWS)
        for row in tl.static_range(ROWS):
            x_bits, y_bits = x_rows[row], y_rows[row]
            differing += tl.where(x_bits == y_bits, 0.0, 1.0)
            x_value, y_value = decode(x_bits, FORMAT), decode(y_bits, FORMAT)
            if CAREFUL:
                x_finite, y_finite = tl.abs(x_value) < float("inf"), tl.abs(y_value) < float("inf")
                x_nonfinite += tl.where(x_finite, 0.0, 1.0)
                y_nonfinite += tl.where(y_finite, 0.0, 1.0)
                x_value = tl.where(x_finite & y_finite, x_value, 0.0)
                y_value = tl.where(x_finite & y_finite, y_value, 0.0)
            difference = y_value - x_value
            change = tl.abs(difference)
            largest = tl.maximum(largest, change)
            lanes = (
                lanes[0] + change,
                lanes[1] + difference * difference,
                lanes[2] + x_value * y_value,
                lanes[3] + x_value * x_value,
                lanes[4] + y_value * y_value,
            )
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    block = tl.arange(0, BLOCKS)
    squares = tl.zeros([BLOCKS], tl.float64)
    for kind in tl.static_range(5):
        total = _in_order(lanes[kind], BLOCKS)
        tl.store(sums + kind * all_blocks + block, total, mask=block * BLOCK < left)
        row = tallies + (4 + 3 * kind) * tiles + tile
        tl.store(row, tl.sum(total, 0))
        tl.store(row + tiles, tl.sum(tl.abs(total), 0))
        tl.store(row + 2 * tiles, tl.min(_grid(total), 0).to(tl.float64))
        if kind >= 3:
            squares += total
    tl.store(tallies + tile, _over_all(differing).to(tl.float64))
    tl.store(tallies + tiles + tile, tl.max(tl.max(largest, 1), 0).to(tl.float64))
    tl.store(tallies + 2 * tiles + tile, _over_all(x_nonfinite).to(tl.float64))
    tl.store(tallies + 3 * tiles + tile, _over_all(y_nonfinite).to(tl.float64))
    return tl.sum(squares, 0) < float("inf")


@inlined
def _share(word: tl.tensor, COMPUTE: tl.constexpr) -> tl.tensor:
    return tl.load(word).to(tl.float64, bitcast=True).to(COMPUTE)


@inlined
def _rows(x: tl.tensor, y: tl.tensor, BLOCKS: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """Load x and y, (blocks, rows x lanes), as two tuples of (blocks, lanes). Elements of 16 or 8 bits move as one word."""
    if ROWS == 1:
        return (x,), (y,)
    elif ROWS == 2:
        return _two_rows(x, BLOCKS), _two_rows(y, BLOCKS)
    else:
        both = tl.reshape(x.to(tl.uint32) | (y.to(tl.uint32) << 16), [BLOCKS, 2, 2, LANES])
        even, odd = tl.split(tl.permute(both, (0, 3, 1, 2)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        WORD: tl.constexpr = x.dtype
        return (
            (first.to(WORD), second.to(WORD), third.to(WORD), fourth.to(WORD)),
            ((first >> 16).to(WORD), (second >> 16).to(WORD), (third >> 16).to(WORD), (fourth >> 16).to(WORD)),
        )


@inlined
def _two_rows(bits: tl.tensor, BLOCKS: tl.constexpr) -> tl.tensor:
    return tl.split(tl.permute(tl.reshape(bits, [BLOCKS, 2, LANES]), (0, 2, 1)))


@inlined
def _in_order(lanes: tl.tensor, BLOCKS: tl.constexpr) -> tl.tensor:
    """Add the 16 lanes of each block in order, in fp64: (blocks, 16) -> (blocks)."""
    first, second = tl.split(tl.permute(tl.reshape(lanes.to(tl.float64), [BLOCKS, 2, 8]), (0, 2, 1)))
    return _add_eight(_add_eight(tl.zeros([BLOCKS], tl.float64), first, BLOCKS), second, BLOCKS)


@inlined
def _add_eight(total: tl.tensor, lanes: tl.tensor, BLOCKS: tl.constexpr) -> tl.tensor:
    even, odd = tl.split(tl.reshape(lanes, [BLOCKS, 2, 2, 2]))
    by_four_0, by_four_2 = tl.split(even)
    by_four_1, by_four_3 = tl.split(odd)
    lane_0, lane_4 = tl.split(by_four_0)
    lane_1, lane_5 = tl.split(by_four_1)
    lane_2, lane_6 = tl.split(by_four_2)
    lane_3, lane_7 = tl.split(by_four_3)
    total = total + lane_0 + lane_1 + lane_2 + lane_3
    return total + lane_4 + lane_5 + lane_6 + lane_7


@inlined
def _over_all(counts: tl.tensor) -> tl.tensor:
    return tl.sum(tl.sum(counts, 1), 0)


@triton.jit
def totals_kernel(
    records: tl.tensor,
    sums: tl.tensor,
    tallies: tl.tensor,
    statistics: tl.tensor,
    all_blocks: tl.tensor,
    all_tiles: tl.tensor,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Add up the statistics of each tensor from its tiles. Grid: tensors, 10 columns.

    statistics: fp64 (tensors, 10); on entry those of the earlier chunks. TILE: elements in a tile. CHUNK: partial sums loaded
    at once.
    """
    record = records + tl.program_id(0) * RECORD
    column = tl.program_id(1)
    cell = statistics + tl.program_id(0) * STATISTICS + column
    before = tl.load(cell)
    elements = tl.load(record + 3)
    tallies += tl.load(record + 4)
    tiles = (elements + TILE - 1) // TILE
    if column == 0:
        tl.store(cell, before + elements.to(tl.float64))
    elif (column == 1) | (column == 4) | (column >= 8):
        row = tl.where(column == 1, 0, tl.where(column == 4, 1, column - 6))
        tl.store(cell, _tally(tallies + row * all_tiles, tiles, before, column == 4, CHUNK))
    else:
        kind = tl.where(column < 4, column - 2, column - 3)
        sums += kind * all_blocks + tl.load(record + 5)
        tallies += (4 + 3 * kind) * all_tiles
        tl.store(cell, _sum(sums, (elements + BLOCK - 1) // BLOCK, tallies, tiles, all_tiles, before, CHUNK))


@inlined
def _tally(partials: tl.tensor, tiles: tl.tensor, before: tl.tensor, is_maximum: tl.tensor, CHUNK: tl.constexpr) -> tl.tensor:
    """Sum of whole numbers, or their maximum. The order does not change the result."""
    added = tl.zeros([CHUNK], tl.float64)
    largest = tl.zeros([CHUNK], tl.float64)
    for begin in range(0, tiles, CHUNK):
        at = begin + tl.arange(0, CHUNK)
        values = tl.load(partials + at, mask=at < tiles, other=0.0)
        added += values
        largest = tl.maximum(largest, values)
    return tl.where(is_maximum, tl.maximum(before, tl.max(largest, 0)), before + tl.sum(added, 0))


@inlined
def _sum(
    partials: tl.tensor,
    blocks: tl.tensor,
    tallies: tl.tensor,
    tiles: tl.tensor,
    all_tiles: tl.tensor,
    before: tl.tensor,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Add `before` and the blocks' sums in order, in fp64. Any order is taken where it gives the same result.

    It does where all terms are multiples of 2^e and their magnitudes add up to less than 2^(52 + e): then no partial sum is
    rounded. Lanes of 24 bits leave 28 bits for the number of terms and their spread. Weights rarely need more; where they do,
    one program adds in order. tallies: three rows, with the tiles' sums, magnitudes and e.
    """
    added = tl.zeros([CHUNK], tl.float64)
    magnitude = tl.zeros([CHUNK], tl.float64)
    grid = tl.zeros([CHUNK], tl.float64) + NO_GRID
    for begin in range(0, tiles, CHUNK):
        at = begin + tl.arange(0, CHUNK)
        added += tl.load(tallies + at, mask=at < tiles, other=0.0)
        magnitude += tl.load(tallies + all_tiles + at, mask=at < tiles, other=0.0)
        grid = tl.minimum(grid, tl.load(tallies + 2 * all_tiles + at, mask=at < tiles, other=NO_GRID))
    finest = tl.minimum(tl.min(grid, 0).to(tl.int64), _grid(before))
    total = before + tl.sum(added, 0)
    size = tl.sum(magnitude, 0) + tl.abs(before)
    exponent = ((size.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    if (exponent >= 52 + finest) | (exponent == 1024):
        total = before
        for begin in range(0, blocks, UNROLLED):  # unrolled, so that new loads are issued while earlier terms are added
            for ahead in tl.static_range(UNROLLED):
                total += tl.load(partials + begin + ahead, mask=begin + ahead < blocks, other=0.0)
    return total


@inlined
def _grid(values: tl.tensor) -> tl.tensor:
    """The exponent e of the lowest set bit of fp64 values, which are multiples of 2^e. NO_GRID for zero."""
    bits = values.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) & 0x7FF
    significand = (bits & 0xFFFFFFFFFFFFF) | tl.where(exponent > 0, 1 << 52, 0).to(tl.int64)
    lowest = (significand & -significand).to(tl.float64).to(tl.int64, bitcast=True)  # a power of two
    return tl.where(significand == 0, NO_GRID, (lowest >> 52) - 1023 + tl.maximum(exponent, 1) - 1075)

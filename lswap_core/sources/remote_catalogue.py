"""Reads the catalogue of a remote checkpoint: its index, headers by range requests, samples, and the files beside the
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial

from lswap_core.checkpoint.catalogue import INDEX_FILE, SINGLE_FILE, Checkpoint, Role, Shard, Sidecar
from lswap_core.checkpoint.header import LENGTH_BYTES, MAX_HEADER_BYTES, parse_header, parse_length
from lswap_core.errors import FormatError
from lswap_core.io.ports import Silence
from lswap_core.io.threads import run_all
from lswap_core.sources.directory import (
    SAMPLE_BYTES,
    check_name,
    check_shard,
    is_nested_sidecar,
    is_sidecar,
    only_file,
    parse_index,
    sample_ranges,
    tensors_by_file,
)
from lswap_core.sources.local import read_shard, read_small
from lswap_core.sources.range_stream import Count, RangeReader, read_range
from lswap_core.sources.remote import Folder
from lswap_core.text.strict_json import parse_object

_AT_ONCE = 16
"""Shards that are opened at a time: each costs four round trips and almost no bytes."""
_ENTRY_BYTES = 112
"""Bytes of a tensor in a header beside its name: dtype, shape, offsets, punctuation."""
FIRST_GUESS_BYTES = 24 * 1024
"""Guessed size of a header without an index: a shard of a dense model has some hundred tensors."""


def open_folder(folder: Folder, role: Role, name: str | None = None, count: Count = lambda _: None) -> Checkpoint:
    """Open the checkpoint in a folder. Reads headers, samples, and those files beside the weights that were asked for.

    Raises FormatError for malformed files and SourceError where the folder cannot be reached.
    """
    if folder.only is not None:
        shards = _read_shards(folder, {folder.only: set()}, count)
        return Checkpoint(role, f"{folder.root}/{folder.only}", folder.root, name or folder.only, shards)
    sizes = folder.sizes()
    text = config = None
    if INDEX_FILE in sizes:
        raw = read_whole(folder, INDEX_FILE, count)
        path = f"{folder.root}/{INDEX_FILE}"
        weight_map = parse_index(raw, path=path, single_beside=SINGLE_FILE in sizes)
        by_file = tensors_by_file(weight_map)
        shards = _read_shards(folder, by_file, count)
        for shard in shards:
            where = f"{folder.root}/{shard.name}"
            check_shard(shard, len(by_file[shard.name]), weight_map, index_path=path, path=where)
        text = raw.decode()
    else:
        shards = _read_shards(folder, {only_file([file for file in sizes if "/" not in file], folder.root): set()}, count)
    sidecars = tuple(_sidecar(folder, file, count) for file in sorted(sizes) if _belongs(file))
    for sidecar in sidecars:
        if sidecar.name == "config.json":
            config = parse_object(sidecar.read(), path=f"{folder.root}/config.json", infinities=True)
    return Checkpoint(role, folder.root, folder.root, name or folder.name, shards, text, config, sidecars)


def read_whole(folder: Folder, name: str, count: Count = lambda _: None) -> bytes:
    """Read a whole file beside the weights. Raises FormatError where it is implausibly large."""
    copy = folder.copy_of(name)
    if copy is not None:
        return read_small(copy.parents[name.count("/")], name)
    reader = folder.reader(name)
    if reader.size > MAX_HEADER_BYTES:
        what = f"has over {MAX_HEADER_BYTES} bytes, too many for a file beside the weights; move it away"
        raise FormatError(what, path=reader.path)
    return read_range(reader, 0, reader.size, count)


def _belongs(name: str) -> bool:
    return is_sidecar(name) and ("/" not in name or is_nested_sidecar(name))


def _sidecar(folder: Folder, name: str, count: Count) -> Sidecar:
    check_name(name, f"{folder.root}/{name}")
    read = cache(partial(read_whole, folder, name, count))  # size, digest and bytes are requested in turn
    return Sidecar(name, read, folder.told(name))


def _read_shards(folder: Folder, by_file: Mapping[str, set[str]], count: Count) -> tuple[Shard, ...]:
    def read(file: str, _: object) -> Shard:
        names = by_file[file]
        guess = sum(len(name.encode()) + _ENTRY_BYTES for name in names) if names else FIRST_GUESS_BYTES
        try:
            return _read_shard(folder, file, guess, count)
        except FileNotFoundError:
            if not names:  # files without an index
                raise
            raise FormatError(f"shard {file} is missing", path=f"{folder.root}/{INDEX_FILE}", tensor=min(names)) from None

    return tuple(run_all(read, sorted(by_file), total_bytes=0, progress=Silence(), workers=min(_AT_ONCE, len(by_file))))


def _read_shard(folder: Folder, name: str, guess: int, count: Count) -> Shard:
    copy = folder.copy_of(name)
    if copy is not None:
        return replace(read_shard(copy.parent, name), mtime_ns=folder.mtime_ns(name))
    return read_remote_shard(folder.reader(name), name, folder.mtime_ns(name), guess, count)


def read_remote_shard(reader: RangeReader, name: str, mtime_ns: int, guess: int, count: Count = lambda _: None) -> Shard:
    """Read and validate the header of one safetensors file, and read the samples of its fingerprint.

    guess: expected size of the header in bytes; a longer one needs a second request. The first sample follows the header and
    comes with it.
    """
    path, size = reader.path, reader.size
    head = read_range(reader, 0, min(size, LENGTH_BYTES + guess + SAMPLE_BYTES), count)
    length = parse_length(head[:LENGTH_BYTES], size, path=path)
    if len(head) < LENGTH_BYTES + length:
        head += read_range(reader, len(head), LENGTH_BYTES + length, count)
    raw = head[LENGTH_BYTES : LENGTH_BYTES + length]
    header = parse_header(raw, data_size=size - LENGTH_BYTES - length, path=path)

    def sample(places: tuple[int, int], _: object) -> bytes:
        begin, end = places
        known = head[begin:end]
        return known if len(known) == end - begin else known + read_range(reader, begin + len(known), end, count)

    ranges = sample_ranges(header)
    samples = run_all(sample, ranges, total_bytes=0, progress=Silence(), workers=len(ranges))
    return Shard(name, header, mtime_ns, b"".join(samples))


def local_copies(folder: Folder, checkpoint: Checkpoint) -> Checkpoint | None:
    """The shards of a checkpoint that are on a local disk already, as a catalogue; None where there are none. Ignores a copy
    whose fingerprint differs.
    """
    copies = {shard.name: copy for shard in checkpoint.shards if (copy := folder.copy_of(shard.name)) is not None}
    shards = []
    for shard in checkpoint.shards:
        if shard.name in copies:
            copied = read_shard(copies[shard.name].parent, shard.name)
            if copied.fingerprint == shard.fingerprint:
                shards.append(copied)
    if not shards:
        return None
    root = str(copies[shards[0].name].parent)
    return Checkpoint(checkpoint.role, root, root, checkpoint.name, tuple(shards))

"""Which disks are read in order, told from `proc` and `sys` as machines of several kinds have them; and that they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lswap_core import LayerSwap, kernels, lay_out, open_checkpoint
from lswap_core.checkpoint.catalogue import Role, TensorRef
from lswap_core.engine import executor
from lswap_core.engine.evaluate import Evaluator
from lswap_core.io.ports import Silence
from lswap_core.sinks.disk.sink import DiskSink
from lswap_core.sources.disks import mount_of, reads_best_in_order
from lswap_core.sources.local import LocalSource
from tests.build import llama_pair, tree

MOUNTS = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:21 / /proc rw - proc proc rw
23 21 259:0 / /fast rw - xfs /dev/nvme0n1 rw
24 21 0:44 /sub /data rw shared:3 master:1 - btrfs /dev/sdb rw,space_cache
25 21 0:45 / /home rw - nfs4 server:/home rw
26 25 0:46 / /home/me/local\040disk rw - tmpfs tmpfs rw
27 21 0:47 / /bucket rw - fuse.s3fs s3fs rw
28 21 0:48 / /stick rw - fuseblk /dev/sdc1 rw
29 21 0:49 / /layered rw - overlay overlay rw
30 21 253:0 / /over rw - ext4 /dev/mapper/over rw
31 21 259:0 / /over rw - xfs /dev/nvme0n1 rw
this line is no mount
"""


@pytest.fixture
def machine(tmp_path: Path) -> str:
    """A root directory: one disk of three turns, with a partition; so do sdb and sdc; the other is flash."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    for name, numbers, turns in (
        ("sda", "8:0", 1),
        ("sdb", "8:16", 1),
        ("sdc", "8:32", 1),
        ("nvme0n1", "259:0", 0),
        ("dm-0", "253:0", 1),
    ):
        disk = tmp_path / "sys/devices" / name
        (disk / "queue").mkdir(parents=True)
        (disk / "queue/rotational").write_text(f"{turns}\n")
        for place, link in (("dev/block", numbers), ("class/block", name)):
            (tmp_path / "sys" / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys" / place / link).symlink_to(disk)
    for number, name in ((1, "sda1"), (33, "sdc1")):
        part = tmp_path / "sys/devices" / name[:3] / name
        part.mkdir()
        (tmp_path / "sys/dev/block" / f"8:{number}").symlink_to(part)
        (tmp_path / "sys/class/block" / name).symlink_to(part)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("path", "in_order"),
    [
        ("/models/x", True),  # a partition of a disk that turns
        ("/fast/x", False),
        ("/fast", False),
        ("/faster", True),  # not below /fast
        ("/data/x", True),  # btrfs: found by the disk's name
        ("/home/me/x", True),  # NFS
        ("/home/me/local disk/x", False),
        ("/bucket/x", True),
        ("/stick/x", True),
        ("/layered/x", False),  # nobody knows
        ("/over/x", False),  # hides a mount that turns
    ],
)
def test_disks_that_are_read_in_order(machine: str, path: str, in_order: bool) -> None:
    assert reads_best_in_order(path, root=machine) is in_order


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert not reads_best_in_order("/x", root=str(tmp_path))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert not reads_best_in_order("/x", root=str(tmp_path))


def test_this_machine_tells_of_its_mounts() -> None:
    found = mount_of("/proc/self")
    assert found is not None
    assert (found.point, found.kind) == ("/proc", "proc")
    assert isinstance(reads_best_in_order("/"), bool)


class Watched(LocalSource):
    """A local source that tells where copies begin."""

    def descriptor(self, role: Role, file: str) -> int | None:
        self.asked.append((role, file))
        return None

    def read_into(self, ref: TensorRef, offset: int, buffer: memoryview) -> None:
        self.asked.append((ref.role, ref.file, ref.begin + offset))
        super().read_into(ref, offset, buffer)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_source_is_read_in_order_where_that_pays(tmp_path: Path, sequential: bool) -> None:
    pair = llama_pair(tmp_path / "sources")
    sources = {role: open_checkpoint(path, role=role) for role, path in (("math", pair.math), ("lang", pair.lang))}
    plan = lay_out(LayerSwap(bottom=3, top=2).draft(**sources))
    sink = DiskSink(tmp_path / str(sequential))
    with Watched({"math": sources["math"], "lang": sources["lang"]}) as source:
        source.asked, source.sequential = [], sequential
        done = executor.run(plan, source, sink, Evaluator(source, kernels), progress=Silence(), workers=1)
    assert [record.name for record in done] == [step.name for step in plan.steps]
    reads = [asked for asked in source.asked if len(asked) == 3]
    assert (reads == sorted(reads)) is sequential
    assert tree(sink.partial).keys() >= {file.name for file in plan.files}
    for step in plan.steps:
        ref = step.made_of.refs[0]
        theirs = (pair.math if ref.role == "math" else pair.lang) / ref.file
        assert (sink.partial / step.file).read_bytes()[step.begin : step.end] == theirs.read_bytes()[ref.begin : ref.end]
    sink.close()

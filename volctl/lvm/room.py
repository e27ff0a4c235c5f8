"""How much more fits: the arithmetic of extents, of copies on different disks, and of thin pools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from volctl.backend import Stats
from volctl.lvm.report import LogicalVolume, PhysicalVolume, VolumeGroup


def largest(frees: Sequence[int], areas: int) -> int:
    """Bytes of each of `areas` equal areas that lie side by side on different disks.

    The largest T with sum(min(free, T)) >= areas * T (a disk holds at most one area at any offset).
    """
    rest, left = sorted(frees), areas
    if len(rest) < areas:
        return 0
    while left and rest and rest[-1] * left > sum(rest):
        rest.pop()  # this disk is larger than its share: it holds one whole area
        left -= 1
    return sum(rest) // left if left else 0


def usable(pvs: Iterable[PhysicalVolume], tags: frozenset[str]) -> list[PhysicalVolume]:
    """The disks that may hold our extents: any of the tags, all without."""
    return [pv for pv in pvs if pv.allocatable and not pv.missing and (not tags or tags & pv.tags)]


def thick(group: VolumeGroup, pvs: Sequence[PhysicalVolume], copies: int, stripes: int, ours: str) -> Stats:
    """The room for LVs of so many copies and stripes on these disks.

    `foreign` is of that room, too: what is taken there and not by LVs of ours (a foreign LV of one copy
    takes as much from a mirror as from a plain volume; one on other disks takes nothing).
    """
    areas = copies * stripes
    mark = group.extent if copies > 1 else 0  # each leg of a raid has an extent of its own metadata
    total, free = (largest(sizes, areas) for sizes in ([pv.size for pv in pvs], [pv.free for pv in pvs]))
    total, free = (_extents(room - mark, group.extent) * stripes for room in (total, free))
    own = sum(lv.taken for lv in group.lvs if ours in lv.tags and not lv.pool)
    return Stats(total=total, free=free, foreign=max(0, total - free - own))


def _extents(size: int, extent: int) -> int:
    return max(0, size) // extent * extent


def thin(group: VolumeGroup, pool: LogicalVolume, ours: str) -> Stats:
    """The room in a thin pool; `foreign` is what others were promised there. Percentages need it active."""
    used = pool.data_percent
    return Stats(
        total=pool.size,
        free=None if used is None else int(pool.size * (100 - used) / 100),
        foreign=sum(lv.size for lv in group.lvs if lv.pool == pool.name and ours not in lv.tags),
        data_percent=used,
        metadata_percent=pool.metadata_percent,
    )

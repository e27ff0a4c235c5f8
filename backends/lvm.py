"""Volumes as logical volumes of one volume group.

    [[backend]]
    name = "fast"
    kind = "lvm"
    volume_group = "vg0"           # `volctl backend init fast` marks it as ours, and makes the pool
    provisioning = "auto"          # thin if the pool is there, else thick; or "thin", "thick"
    pool = "volctl"                # the thin pool
    pool_size = "100G"             # when it is made; default 95 % of an empty group
    clear = "zero"                 # thick extents before they are given back; "discard", "none"
    mirrors = 0                    # thick: extra copies (raid1, with stripes raid10)
    stripes = 1
    pv_tags = ["ssd"]              # only disks with one of these tags (pvchange --addtag)
    owner = "libvirt-qemu"         # of the device while attached; also group, and mode = "0660"
    snapshot_percentage = 100      # thick: the COW area, of the volume's size; a full one is lost

Host tools: lvm2, for thin also thin-provisioning-tools; root. LVs are inactive unless attached or in
work. Thin: snapshots and clones share blocks; the pool zeroes blocks before use. Thick: whatever must
read as zero is written, since the extents may have been somebody's; snapshots are COW areas, and
clones are copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volctl.backend import Attached, Backend, Capabilities, Info, Listing, Problem, Progress, Setup, Stats, Target
from volctl.errors import BackendError, Failure
from volctl.lvm import about, blocks, placement, thick
from volctl.lvm.commands import Group
from volctl.lvm.group import Change, Session, owner, reverting
from volctl.lvm.making import Maker
from volctl.lvm.report import LogicalVolume, VolumeGroup
from volctl.lvm.settings import settings
from volctl.model import Object

if TYPE_CHECKING:
    from volctl.adoption import Adoption


class Lvm(Backend):
    kind = "lvm"
    exact = True  # by the exit status of lvcreate(8)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._options = settings(setup)
        self._vg = Session(self._options.group, setup.name, setup.database)
        self._make = Maker(self._vg, self._options)

    @cached_property
    def capabilities(self) -> Capabilities:
        extra = dict(self.setup.options.get("capabilities", {}))
        try:
            group = self._vg.see(fresh=False)
            thin = self._pool(group) is not None
        except Failure:
            return Capabilities(block_device=True, extra=extra)
        return Capabilities(
            thin=thin,
            constant_time_clone=thin,
            block_device=True,
            granule=group.extent * (1 if thin else self._options.stripes),
            extra=extra,
        )

    def _awake(self, name: str) -> VolumeGroup:
        """The group; if the LV of that name is attached, it is not suspended any more."""
        group = self._vg.see()
        self._vg.wake(group, name)
        return group

    def pool(self) -> str:
        return self._options.group

    def tools(self) -> list[str]:
        return ["lvm", "thin_check"] if self._options.provisioning != "thick" else ["lvm"]

    def _pool(self, group: VolumeGroup) -> LogicalVolume | None:
        """The thin pool that new volumes go to; None if they are thick."""
        return placement.pool_of(self._options, group)

    def expect_survey(self) -> None:
        self._vg.ask()

    def close(self) -> None:
        self._vg.forget()

    def check(self) -> list[Problem]:
        try:
            group = self._vg.look()
            if trouble := self._vg.trouble(group):
                raise trouble
            return placement.problems(self._options, group)
        except Failure as error:
            return [Problem(error.message, error.hint)]

    def details(self) -> dict[str, Any]:
        group = self._vg.see(fresh=False)
        return placement.details(self._options, group, Group(group.name).autoextend())

    def init(self, *, dry_run: bool = False) -> list[str]:
        from volctl.lvm import prepare

        group = self._vg.look()
        if trouble := self._vg.broken(group):
            raise trouble
        steps = prepare.plan(self._vg, group, self._options, placement.layout_of(self._options, group))
        for step in () if dry_run else steps:
            self._vg.change(step.act)
        return [f"would {step.todo} {step.what}" if dry_run else f"{step.done} {step.what}" for step in steps]

    def claimed(self, *, empty: bool = False) -> str | None:
        with suppress(Failure):
            group = self._vg.look()
            if empty or any("volctl" in lv.tags and "volctl-pool" not in lv.tags for lv in group.lvs):
                return owner(group)
        return None

    def stats(self) -> Stats:
        return placement.stats(self._options, self._vg.see(fresh=False), self._vg.mark)

    def create(self, target: Object, size: int) -> None:
        if not self._make.blank(target, size):
            with self._make.opened(target, size, os.O_RDWR) as (fd, _):
                blocks.zero(fd, 0, size)

    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        group = self._vg.see(fresh=False)
        origin = self._vg.existing(group, source.name)
        if size < origin.size:
            raise BackendError(f"{source.name} has {origin.size} bytes, more than the {size} asked for")
        if origin.is_thin and self._pool(group):
            self._make.share(origin, target.name, self._vg.tags(target), size)
        else:
            self._copy(group, origin, target, size, progress)
        progress(size, size)

    def _copy(self, group: VolumeGroup, origin: LogicalVolume, target: Object, size: int, progress: Progress) -> None:
        with (
            self._vg.opened(origin.name, os.O_RDONLY | os.O_DIRECT, group) as source,
            self._make.opened(target, size, os.O_RDWR | os.O_DIRECT) as (fd, thin),
        ):
            thick.check_whole(origin, source)
            blocks.copy(source, fd, origin.size, progress)
            if not thin:
                blocks.zero(fd, origin.size, size)

    @contextmanager
    def writing(self, target: Object, size: int) -> Iterator[Target]:
        with self._make.opened(target, size, os.O_RDWR) as (_, thin):
            yield Target(self.path(target), "raw", zeroed=thin)

    @contextmanager
    def reading(self, source: Object) -> Iterator[Target]:
        group = self._vg.see()
        lv = self._vg.existing(group, source.name)
        with self._vg.opened(source.name, os.O_RDONLY | os.O_DIRECT, group) as fd:
            thick.check_whole(lv, fd)
            yield Target(self.path(source), "raw", zeroed=False)

    def extend(self, volume: Object, size: int) -> None:
        group = self._awake(volume.name)
        lv = self._vg.existing(group, volume.name)
        if size < lv.size:
            raise BackendError(f"{volume.name} has {lv.size} bytes and is not cut to {size}")
        with self._vg.awake(lv):
            if lv.is_thin:
                if size > lv.size:
                    self._vg.change(lambda verbs: verbs.extend(lv.name, size))
            else:
                thick.extend(self._vg, group, lv, size, placement.layout_of(self._options, group).pvs)

    def snapshot(self, volume: Object, snapshot: Object) -> None:
        group, tags = self._vg.see(fresh=False), self._vg.tags(snapshot)
        lv = self._vg.existing(group, volume.name)
        if lv.is_thin:
            return self._make.share(lv, snapshot.name, tags, lv.size)
        area = thick.cow_size(lv.size, self._options.snapshot_percentage, group.extent)
        pvs = placement.layout_of(self._options, group).pvs
        make: Change = lambda verbs: verbs.snapshot_thick(lv.name, snapshot.name, area, tags, pvs)
        return self._make.instead(snapshot.name, lambda: self._vg.change(make))

    def delete_snapshot(self, volume: Object, snapshot: Object) -> None:
        self._vg.remove(snapshot.name, self._awake(volume.name), self._options.clear)
        self._vg.flush()

    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        group = self._vg.see()
        past, now = self._vg.existing(group, snapshot.name), self._vg.find(group, volume.name)
        if past.is_thin:
            self._swap(group, volume, past, now, size)
        else:
            self._vg.existing(group, volume.name)
            thick.copy_back(self._vg, group, volume.name, past, size)

    def _swap(
        self, group: VolumeGroup, volume: Object, past: LogicalVolume, now: LogicalVolume | None, size: int
    ) -> None:
        """A new snapshot of the snapshot takes the volume's name. It is whole before the old one goes, so a
        missing volume means that only the renaming was left to do."""
        new = reverting(volume)
        if now or not self._vg.find(group, new):
            self._vg.existing(group, volume.name)
            tags = self._vg.tags(volume) | (about.own(now.tags) if now and not volume.about else set())
            self._make.share(past, new, tags, size)
            self._vg.remove(volume.name, self._vg.see(), self._options.clear)
        self._vg.change(lambda verbs: verbs.rename(new, volume.name))

    def delete(self, volume: Object) -> None:
        group = self._vg.see()
        there = group.lv(volume.name)
        if there is None or there.origin:  # else it is no copy that LVM made
            self._vg.wake(group, there.origin if there else None)
        for name in (reverting(volume), volume.name):
            self._vg.remove(name, group, self._options.clear)
        self._vg.flush()  # also when all are gone: whoever removed them may have died before this

    def inspect(self, target: Object) -> Info | None:
        from volctl.lvm import look

        lv = self._vg.see().lv(target.name)
        return look.info(lv) if lv and self._vg.mine(lv) else None

    def path(self, volume: Object) -> Path:
        return self._vg.path(volume.name)

    def holders(self, volume: Object) -> list[str]:
        from volctl import udev

        lv = self._vg.see().lv(volume.name)
        return udev.holders(self.path(volume)) if lv and lv.active else []

    def objects(self) -> list[Object]:
        return self._vg.objects(self._vg.see())

    def listing(self) -> Listing:
        from volctl.lvm import look

        return look.listing(self._vg, self._vg.see())

    def describe(self, target: Object) -> None:
        from volctl.lvm import look

        look.describe(self._vg, target)

    def described(self) -> list[Object]:
        from volctl.lvm import look

        return look.described(self._vg, self._vg.see())

    def adopting(self) -> Adoption:
        from volctl.lvm.adopt import LvAdoption

        return LvAdoption(self._vg, self._pool)

    def clear(self, leftover: str) -> None:
        self._vg.remove(leftover, self._vg.see(), self._options.clear)
        self._vg.flush()

    def attach(self, volume: Object, *, read_only: bool, sector_size: int | None = None) -> str:
        from volctl.lvm import devices

        lv = self._vg.existing(self._vg.see(), volume.name)
        return str(devices.attach(self._vg, lv, read_only=read_only, ownership=self._options.ownership))

    def detach(self, volume: Object) -> None:
        from volctl.lvm import devices

        if lv := self._vg.find(self._vg.see(), volume.name):
            devices.detach(self._vg, lv)

    def attached(self, volume: Object, device: str | None = None) -> Attached | None:
        from volctl.lvm import devices

        return devices.attached(self.path(volume))

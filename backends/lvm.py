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
    snapshot_percentage = 100      # thick: the COW area, of the volume's size; a full one is lost

Host tools: lvm2, for thin also thin-provisioning-tools; root. LVs are inactive unless attached or in
work. Thin: snapshots and clones share blocks; the pool zeroes blocks before use. Thick: whatever must
read as zero is written, since the extents may have been somebody's; snapshots are COW areas, and
clones are copies.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from volctl import udev
from volctl.backend import Attached, Backend, Capabilities, Info, Problem, Progress, Setup, Stats, Target
from volctl.errors import BackendError, ExistsError, VolctlError
from volctl.lvm import blocks, prepare, room
from volctl.lvm.commands import Layout
from volctl.lvm.group import ATTACHED, Change, Session, owner
from volctl.lvm.report import LogicalVolume, VolumeGroup
from volctl.lvm.settings import settings
from volctl.model import MiB, Object, round_up

T = TypeVar("T")

COPYING = os.O_RDWR | os.O_DIRECT
TAIL = "volctl-tail-"
"""Tag of a thick volume that grew and is not known to read as zeros from this byte on."""


class Lvm(Backend):
    kind = "lvm"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._options = settings(setup)
        self._vg = Session(self._options.group, setup.name, setup.database)

    @cached_property
    def capabilities(self) -> Capabilities:
        extra = dict(self.setup.options.get("capabilities", {}))
        try:
            group = self._vg.see(fresh=False)
        except VolctlError:
            return Capabilities(block_device=True, extra=extra)
        thin = self._pool(group) is not None
        return Capabilities(
            thin=thin,
            constant_time_clone=thin,
            block_device=True,
            granule=group.extent * (1 if thin else self._options.stripes),
            extra=extra,
        )

    def pool(self) -> str:
        return self._options.group

    def tools(self) -> list[str]:
        return ["lvm", "thin_check"] if self._options.provisioning != "thick" else ["lvm"]

    def _pool(self, group: VolumeGroup) -> LogicalVolume | None:
        """The thin pool that new volumes go to; None if they are thick."""
        found = group.lv(self._options.pool)
        return found if self._options.provisioning != "thick" and found and found.is_pool else None

    def _layout(self, group: VolumeGroup) -> Layout:
        disks = room.usable(group.pvs, self._options.pv_tags)
        names = tuple(pv.name for pv in disks) if self._options.pv_tags else ()
        if self._options.pv_tags and not names:
            raise BackendError(f"no disk of {group.name} has one of the tags {', '.join(self._options.pv_tags)}")
        return Layout(self._options.mirrors, self._options.stripes, names)

    def check(self) -> list[Problem]:
        try:
            group = self._vg.look()
            if trouble := self._vg.trouble(group) or self._unpooled(group):
                return [Problem(trouble.message, trouble.hint)]
        except VolctlError as error:
            return [Problem(error.message, error.hint)]
        pool = self._pool(group)
        return self._pool_problems(pool) if pool else []

    def _unpooled(self, group: VolumeGroup) -> BackendError | None:
        if self._options.provisioning != "thin" or self._pool(group):
            return None
        said = f"there is no thin pool {group.name}/{self._options.pool}"
        return BackendError(said, hint=f"make it: volctl backend init {self.name}")

    def _pool_problems(self, pool: LogicalVolume) -> list[Problem]:
        where = f"{self._options.group}/{pool.name}"
        found = []
        if not pool.zeroes:
            found.append(Problem(f"thin pool {where} does not zero new blocks", f"lvchange -Zy {where}"))
        if pool.health:
            found.append(Problem(f"thin pool {where} is {pool.health.replace('_', ' ')}", "see lvmthin(7)"))
        if not shutil.which("thin_check", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"):
            found.append(Problem("the program thin_check is not installed", "install thin-provisioning-tools", False))
        if pool.when_full == "queue":
            hint = f"lvchange --errorwhenfull y {where}"
            found.append(Problem(f"writers wait for 60 s when thin pool {where} is full", hint, False))
        if not pool.monitored:
            found.append(Problem(f"thin pool {where} is not monitored", f"lvchange --monitor y {where}", False))
        return found

    def init(self, *, dry_run: bool = False) -> list[str]:
        group = self._vg.look()
        if (trouble := self._vg.trouble(group)) and owner(group) == self.setup.database:
            raise trouble
        steps = prepare.plan(self._vg, group, self._options, self._layout(group))
        for step in steps if not dry_run else ():
            with self._vg.changing() as verbs:
                step.act(verbs)
        return [f"would {step.todo} {step.what}" if dry_run else f"{step.done} {step.what}" for step in steps]

    def claimed(self) -> str | None:
        with suppress(VolctlError):
            group = self._vg.look()
            if any("volctl" in lv.tags and "volctl-pool" not in lv.tags for lv in group.lvs):
                return owner(group)
        return None

    def stats(self) -> Stats:
        group = self._vg.see(fresh=False)
        if pool := self._pool(group):
            return room.thin(group, pool, self._vg.mark)
        if trouble := self._unpooled(group):
            raise trouble
        disks = room.usable(group.pvs, self._options.pv_tags)
        return room.thick(group, disks, 1 + self._options.mirrors, self._options.stripes, self._vg.mark)

    def create(self, target: Object, size: int) -> None:
        if self._pool(self._vg.see(fresh=False)):
            self._begin(target.name, lambda group: self._change(self._blank(group, target, size)))
        else:
            with self._made(target, size, os.O_RDWR) as fd:
                blocks.zero(fd, 0, size)

    def _begin(self, name: str, make: Callable[[VolumeGroup], T]) -> T:
        """Make an LV, after removing what is there. The group as it was a moment ago is asked first."""
        try:
            return make(self._remove(name, self._vg.see(fresh=False)))
        except ExistsError:
            return make(self._remove(name, self._vg.see()))

    def _change(self, change: Change) -> None:
        with self._vg.changing() as verbs:
            change(verbs)

    def _blank(self, group: VolumeGroup, target: Object, size: int, *, active: bool = False) -> Change:
        """How a blank LV is made; a thick one is active and holds what was there."""
        tags = self._vg.tags(target)
        if pool := self._pool(group):
            return lambda verbs: verbs.create_thin(pool.name, target.name, size, tags, active=active)
        if trouble := self._unpooled(group):
            raise trouble
        layout = self._layout(group)
        return lambda verbs: verbs.create_thick(target.name, size, tags, layout)

    @contextmanager
    def _made(self, target: Object, size: int, flags: int) -> Iterator[int]:
        """A new LV, open; only thin ones are blank."""

        def make(group: VolumeGroup) -> int:
            blank = self._blank(group, target, size, active=True)
            return stack.enter_context(self._vg.opened(target.name, flags, before=None, make=blank))

        with ExitStack() as stack:
            yield self._begin(target.name, make)

    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        group = self._vg.see(fresh=False)
        origin = self._vg.existing(group, source.name)
        if size < origin.size:
            raise BackendError(f"{source.name} has {origin.size} bytes, more than the {size} asked for")
        if origin.is_thin and self._pool(group):
            self._share(origin, target.name, self._vg.tags(target), size)
        else:
            self._copy(origin, target, size, progress)
        progress(size, size)

    def _share(self, origin: LogicalVolume, name: str, tags: set[str], size: int) -> None:
        self._begin(name, lambda _: self._change(lambda verbs: verbs.snapshot_thin(origin.name, name, tags)))
        if size > origin.size:
            self._change(lambda verbs: verbs.extend(name, size))

    def _copy(self, origin: LogicalVolume, target: Object, size: int, progress: Progress) -> None:
        with (
            self._vg.opened(origin.name, os.O_RDONLY | os.O_DIRECT, before=origin) as source,
            self._made(target, size, COPYING) as fd,
        ):
            blocks.copy(source, fd, origin.size, progress)
            if not self.capabilities.thin:
                blocks.zero(fd, origin.size, size)

    @contextmanager
    def writing(self, target: Object, size: int) -> Iterator[Target]:
        with self._made(target, size, os.O_RDWR):
            yield Target(self.path(target), "raw", zeroed=self.capabilities.thin)

    @contextmanager
    def reading(self, source: Object) -> Iterator[Target]:
        lv = self._vg.existing(self._vg.see(), source.name)
        with self._vg.opened(lv.name, os.O_RDONLY, before=lv):
            yield Target(self.path(source), "raw", zeroed=False)

    def extend(self, volume: Object, size: int) -> None:
        group = self._vg.see()
        lv = self._vg.existing(group, volume.name)
        if size < lv.size:
            raise BackendError(f"{volume.name} has {lv.size} bytes and is not cut to {size}")
        if lv.is_thin:
            if size > lv.size:
                self._change(lambda verbs: verbs.extend(lv.name, size))
        else:
            self._extend_thick(group, lv, size)

    def _extend_thick(self, group: VolumeGroup, lv: LogicalVolume, size: int) -> None:
        """The tag says from where on it does not yet read as zeros, also to whoever calls again after a crash."""
        tail = min((int(tag.removeprefix(TAIL)) for tag in lv.tags if tag.startswith(TAIL)), default=lv.size)
        if size > lv.size:
            self._change(lambda verbs: verbs.tag(lv.name, add={f"{TAIL}{tail}"}))
            self._grow(group, lv, size)
        if tail < size:
            with self._vg.opened(lv.name, os.O_RDWR, before=lv) as fd:
                blocks.zero(fd, tail, size)
            self._change(lambda verbs: verbs.tag(lv.name, drop={f"{TAIL}{tail}"}))

    def _grow(self, group: VolumeGroup, lv: LogicalVolume, size: int) -> None:
        """LVM grows an origin of thick snapshots only while it is inactive."""
        away = lv.active and bool(group.snapshots(lv.name))
        pvs = self._layout(group).pvs
        if away:
            self._vg.hide(lv.name, f"{lv.name} has snapshots and is in use; LVM cannot extend it now")
        try:
            self._change(lambda verbs: verbs.extend(lv.name, size, pvs))
        finally:
            if away:
                self._change(lambda verbs: verbs.activate(lv.name))

    def snapshot(self, volume: Object, snapshot: Object) -> None:
        group, tags = self._vg.see(fresh=False), self._vg.tags(snapshot)
        lv = self._vg.existing(group, volume.name)
        if lv.is_thin:
            return self._share(lv, snapshot.name, tags, lv.size)
        percent = self._options.snapshot_percentage
        size = round_up(lv.size * percent // 100 * 257 // 256 + MiB, group.extent)  # 16 bytes for each 4 KiB kept
        pvs = self._layout(group).pvs
        return self._begin(
            snapshot.name,
            lambda _: self._change(lambda verbs: verbs.snapshot_thick(lv.name, snapshot.name, size, tags, pvs)),
        )

    def delete_snapshot(self, volume: Object, snapshot: Object) -> None:
        self._remove(snapshot.name, self._vg.see())
        self._vg.flush()

    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        group = self._vg.see()
        past, now = self._vg.existing(group, snapshot.name), self._vg.find(group, volume.name)
        if past.is_thin:
            self._swap(group, volume, past, now, size)
        else:
            self._copy_back(self._vg.existing(group, volume.name), past, size)

    def _swap(
        self, group: VolumeGroup, volume: Object, past: LogicalVolume, now: LogicalVolume | None, size: int
    ) -> None:
        """A new snapshot of the snapshot takes the volume's name. It is whole before the old one goes, so a
        missing volume means that only the renaming was left to do."""
        new = _reverting(volume)
        if now or not self._vg.find(group, new):
            self._vg.existing(group, volume.name)
            self._share(past, new, self._vg.tags(volume), size)
            self._remove(volume.name, self._vg.see())
        self._change(lambda verbs: verbs.rename(new, volume.name))

    def _copy_back(self, lv: LogicalVolume, past: LogicalVolume, size: int) -> None:
        """What differs is written over, so that it can be done again, and the snapshot's area holds no more by it."""
        with (
            self._vg.opened(past.name, os.O_RDONLY | os.O_DIRECT, before=past) as source,
            self._vg.opened(lv.name, COPYING | os.O_EXCL, before=lv) as fd,
        ):
            blocks.make_equal(source, fd, past.size)
            blocks.zero(fd, past.size, size)

    def delete(self, volume: Object) -> None:
        group = self._vg.see()
        for name in (_reverting(volume), volume.name):
            self._remove(name, group)
        self._vg.flush()  # also when all are gone: whoever removed them may have died before this

    def _remove(self, name: str, group: VolumeGroup) -> VolumeGroup:
        """Clear an LV and give its extents back; absent is success."""
        if not (lv := self._vg.find(group, name)):
            return group
        if snapshots := group.snapshots(name):
            raise BackendError(f"{name} has snapshots in {group.name}, such as {snapshots[0].name}")
        if lv.suspended:
            self._change(lambda verbs: verbs.resume(name))
        if not lv.is_thin and self._options.clear != "none":
            if lv.is_cow:
                self._change(lambda verbs: verbs.split_snapshot(name))
            with self._vg.opened(name, os.O_RDWR | os.O_EXCL, before=None) as fd:
                (blocks.zero if self._options.clear == "zero" else blocks.discard)(fd, 0, blocks.size(fd))
        self._change(lambda verbs: verbs.remove(name))
        return group

    def inspect(self, target: Object) -> Info | None:
        """Of an inactive thin LV nobody knows what it takes; its size is the most that it can be."""
        lv = self._vg.see().lv(target.name)
        if lv is None or not self._vg.mine(lv):
            return None
        used = lv.data_percent if lv.is_thin else None
        return Info(lv.size, lv.taken if used is None else int(lv.taken * used / 100))

    def path(self, volume: Object) -> Path:
        return self._vg.path(volume.name)

    def holders(self, volume: Object) -> list[str]:
        lv = self._vg.see().lv(volume.name)
        return udev.holders(self.path(volume)) if lv and lv.active else []

    def objects(self) -> list[Object]:
        return self._vg.objects(self._vg.see())

    def attach(self, volume: Object, *, read_only: bool, sector_size: int | None = None) -> str:
        lv = self._vg.existing(self._vg.see(), volume.name)
        with self._vg.changing() as verbs:
            if ATTACHED not in lv.tags or lv.read_only != read_only:
                verbs.permit(lv.name, None if lv.read_only == read_only else "r" if read_only else "rw", {ATTACHED})
            verbs.activate(lv.name)
        udev.wait_for(self.path(volume))
        return str(self.path(volume))

    def detach(self, volume: Object) -> None:
        lv = self._vg.find(self._vg.see(), volume.name)
        if lv is None:
            return
        if lv.active:
            self._vg.hide(lv.name, f"{lv.name} is in use")
        if ATTACHED in lv.tags or lv.read_only:
            self._change(lambda verbs: verbs.permit(lv.name, "rw" if lv.read_only else None, drop={ATTACHED}))

    def attached(self, volume: Object, device: str | None = None) -> Attached | None:
        path = self.path(volume)
        try:
            number = path.stat().st_rdev
            said = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
            read_only, sector = ((said / file).read_text().strip() for file in ("ro", "queue/logical_block_size"))
        except OSError:
            return None
        return Attached(str(path), read_only == "1", int(sector))


def _reverting(volume: Object) -> str:
    return f"revert-{volume.id}"

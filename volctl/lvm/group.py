"""The volume group of one backend: seen before anything is done, changed under its lock, synced after.

It carries our mark as a tag, `volctl-db-` and the uuid of the database, and so does every LV of ours.
LVs are active while they are attached or worked on, so `Session.opened` is the way to a device.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import Literal, cast

from volctl import interrupt, udev
from volctl.command import Running
from volctl.errors import INTERRUPTIONS, BackendError, Failure, InUseError, VolctlError
from volctl.lvm import about, blocks
from volctl.lvm.commands import Group
from volctl.lvm.locking import locked
from volctl.lvm.report import LogicalVolume, VolumeGroup
from volctl.model import Object
from volctl.records import mutable

FRESH = 5.0  # seconds that a report serves the questions of one survey
LOOKS = 3  # times that udev may hold an LV, looking at it, longer than LVM waits for it (5 s)
MARK = "volctl-db-"
ATTACHED = "volctl-attached"
AWAY = "volctl-away"
"""Tag of an attached origin that is, or is about to be, inactive while it grows."""
_OBJECT = r"(volume|snap|image)-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
Change = Callable[[Group], None]


@mutable
class Session:
    """One backend's way to its group. `pool` is the thin pool to use, None for thick LVs only."""

    name: str
    backend: str
    database: str
    _seen: tuple[float, VolumeGroup] | None = field(default=None, init=False)
    _asked: tuple[float, Running] | None = field(default=None, init=False)
    _disks: tuple[str, ...] = field(default=(), init=False)

    @property
    def mark(self) -> str:
        return MARK + self.database

    def path(self, name: str) -> Path:
        return Path("/dev", self.name, name)

    def tags(self, target: Object) -> set[str]:
        """Its mark, and what it is about."""
        return {"volctl", self.mark, f"volctl-{target.kind}", f"volctl-id-{target.id}", *about.tags(target)}

    def look(self, *, fresh: bool = True) -> VolumeGroup:
        """The group as it is, whoever's; not `fresh`: as it was a moment ago."""
        if not fresh and self._seen and time.monotonic() - self._seen[0] < FRESH:
            return self._seen[1]
        self._seen = None
        if self._asked and time.monotonic() - self._asked[0] > FRESH:
            self.forget()
        asked, self._asked = self._asked, None
        group = Group(self.name).report(asked[1] if asked else None)
        self._seen = time.monotonic(), group
        self._disks = tuple(pv.name for pv in group.pvs if pv.name.startswith("/"))
        return group

    def ask(self) -> None:
        """Begin to look, for a `look` that is to come in less than `FRESH` seconds."""
        self.forget()
        with suppress(Failure):
            self._asked = time.monotonic(), Group(self.name).ask()

    def forget(self) -> None:
        """What `ask` began is not wanted."""
        if self._asked:
            self._asked[1].end()
        self._asked = None

    def see(self, *, fresh: bool = True) -> VolumeGroup:
        """The group, if it is whole and ours; else `BackendError`."""
        group = self.look(fresh=fresh)
        if trouble := self.trouble(group):
            raise trouble
        return group

    def trouble(self, group: VolumeGroup) -> BackendError | None:
        """What keeps the group from being used: its state, or that it is not ours."""
        return self.broken(group) or self.foreign(group)

    def broken(self, group: VolumeGroup) -> BackendError | None:
        for bad, why, hint in (
            (group.exported, "is exported", f"vgimport {self.name}"),
            (group.partial, "lacks some of its disks", "bring them back, or see vgreduce(8)"),
            (group.shared, "is shared or clustered, and volctl works on one machine", "use a local volume group"),
            (not group.writable, "is read-only", "its metadata says so: see vgcfgbackup(8)"),
        ):
            if bad:
                return BackendError(f"volume group {self.name} of backend {self.backend} {why}", hint=hint)
        return None

    def foreign(self, group: VolumeGroup) -> BackendError | None:
        found = owner(group)
        if found == self.database:
            return None
        why = "is not initialised" if found is None else f"belongs to another database ({found})"
        hint = f"prepare it once: volctl backend init {self.backend}" if found is None else "give each its own group"
        return BackendError(f"volume group {self.name} of backend {self.backend} {why}", hint=hint)

    def mine(self, lv: LogicalVolume) -> bool:
        return self.mark in lv.tags

    def find(self, group: VolumeGroup, name: str) -> LogicalVolume | None:
        """An LV of ours. `BackendError` if something else bears its name."""
        lv = group.lv(name)
        if lv and not self.mine(lv):
            raise BackendError(f"{self.name}/{name} exists but is not ours (it has no tag {self.mark})")
        return lv

    def existing(self, group: VolumeGroup, name: str) -> LogicalVolume:
        if lv := self.find(group, name):
            return lv
        raise BackendError(f"{name} is not in volume group {self.name}")

    def objects(self, group: VolumeGroup) -> list[Object]:
        """Snapshots first: the order in which they can be deleted."""
        names = sorted((lv for lv in group.lvs if self.mine(lv)), key=lambda lv: not lv.is_cow)
        matches = filter(None, (re.fullmatch(_OBJECT, lv.name) for lv in names))
        return [Object(cast(Literal["volume", "snap", "image"], match[1]), match[2]) for match in matches]

    @contextmanager
    def changing(self) -> Iterator[Group]:
        """The verbs, under the group's lock; what they changed is on the disks when the block ends."""
        self._seen = None
        with locked(self.name) as fd:
            yield Group(self.name, (fd,))
        self.flush()

    def change(self, change: Change) -> None:
        with self.changing() as verbs:
            change(verbs)

    def flush(self) -> None:
        """LVM writes thick metadata without flushing the disks' caches (measured with power cuts)."""
        for disk in self._disks:
            blocks.flush(Path(disk))

    @contextmanager
    def opened(self, name: str, flags: int, group: VolumeGroup, make: Change | None = None) -> Iterator[int]:
        """An LV's device, made or activated first, as an open descriptor; inactive again after.

        `group` is how it was before: what is attached stays active. Activation and open are under one
        lock, so that nobody else's deactivation comes between.
        """
        stays = make is None and _attached(group, name)
        try:
            with self._activated(name, flags, make) as fd:
                yield fd
        except BaseException as error:
            ending = isinstance(error, INTERRUPTIONS)
            with suppress(VolctlError if ending else Failure):  # who is told to end only now still hears it
                self.rest(name, stays)
            raise
        self.rest(name, stays)

    @contextmanager
    def _activated(self, name: str, flags: int, make: Change | None) -> Iterator[int]:
        self._seen = None
        with ExitStack() as stack:
            with locked(self.name) as lock:
                verbs = Group(self.name, (lock,))
                make(verbs) if make else verbs.activate(name)
                udev.wait_for(self.path(name))
                fd = stack.enter_context(blocks.device(self.path(name), flags))
            if make:
                self.flush()
            yield fd

    def rest(self, name: str, stays: bool = False) -> None:
        """Work on an LV is over: inactive, unless it is attached or another command is reading it, too."""
        for _ in range(0 if stays else LOOKS):
            with locked(self.name) as lock, suppress(InUseError):
                return Group(self.name, (lock,)).deactivate(name)
            if udev.holders(self.path(name)):
                return None
        return None

    def wake(self, group: VolumeGroup, name: str | None) -> None:
        """Let an attached LV, or any, go on that an LVM which was killed left suspended: who uses it waits."""
        for lv in group.lvs:
            if lv.suspended and ATTACHED in lv.tags and self.mine(lv) and name in (None, lv.name):
                with self.changing() as verbs:
                    verbs.resume(lv.name)

    @contextmanager
    def awake(self, lv: LogicalVolume) -> Iterator[None]:
        """Inside an LV is changed that may be attached; it goes on, whatever comes."""
        try:
            yield
        except BaseException:
            if ATTACHED in lv.tags:
                with suppress(VolctlError), interrupt.undoing():
                    self.wake(self.look(), lv.name)
            raise

    def hide(self, name: str, said: str) -> None:
        """Deactivate; `InUseError` begins with `said` and names who holds the LV, which stays as it was."""
        if held := udev.holders(self.path(name)):
            raise InUseError(f"{said} ({', '.join(held)})", hint="stop what uses it first")
        try:
            with locked(self.name) as lock:
                Group(self.name, (lock,)).deactivate(name)
        except InUseError as error:
            raise InUseError(said, hint="stop what uses it first") from error

    def remove(self, name: str, group: VolumeGroup, clear: str) -> None:
        """Give an LV's extents back, thick ones cleared (`zero`, `discard`, `none`); absent is success."""
        if not (lv := self.find(group, name)):
            return
        if snapshots := group.snapshots(name):
            raise BackendError(f"{name} has snapshots in {group.name}, such as {snapshots[0].name}")
        if lv.suspended:
            self.change(lambda verbs: verbs.resume(name))
        if not lv.is_thin and clear != "none":
            if lv.is_cow:
                self.change(lambda verbs: verbs.split_snapshot(name))
            with self.opened(name, os.O_RDWR | os.O_EXCL, group) as fd:
                (blocks.zero if clear == "zero" else blocks.discard)(fd, 0, blocks.size(fd))
        self.change(lambda verbs: verbs.remove(name))


def _attached(group: VolumeGroup, name: str) -> bool:
    """Also a thick snapshot whose origin is: LVM activates them together."""
    lv = group.lv(name)
    if lv and lv.is_cow and lv.origin:
        lv = group.lv(lv.origin)
    return lv is not None and lv.active and ATTACHED in lv.tags


def owner(group: VolumeGroup) -> str | None:
    """The database whose mark the group carries; the smallest if somebody copied tags."""
    marks = sorted(tag.removeprefix(MARK) for tag in group.tags if tag.startswith(MARK))
    return marks[0] if marks else None


def reverting(volume: Object) -> str:
    """What a volume's successor is called until it takes its name."""
    return f"revert-{volume.id}"

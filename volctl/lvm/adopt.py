"""LVs of others become volumes, and volumes LVs of others: a name and tags, nothing else."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable

from volctl import udev
from volctl.adoption import Adoption, Found
from volctl.errors import InUseError, NotFoundError, UsageError
from volctl.lvm.group import MARK, Session
from volctl.lvm.report import LogicalVolume, VolumeGroup
from volctl.model import Object
from volctl.records import record

_RESERVED = re.compile(
    r"snapshot|pvmove|volume-|snap-|image-|revert-|.*_(c|m|r|t)(data|meta|image|log|origin)|.*_vorigin"
)
"""What LVM keeps for itself (lvm(8), "VALID NAMES"), and what a listing of ours may take for an object."""

_OURS = r"volctl(-(volume|snap|image|attached|away)|-(db|id|about|tail)-.*)?"


def ours(tags: Iterable[str]) -> set[str]:
    """Those that volctl gives to a volume; a stranger's may begin alike."""
    return {tag for tag in tags if re.fullmatch(_OURS, tag)}


@record
class LvAdoption(Adoption):
    """Plain and thin LVs of the group; `pool` finds the thin pool of the backend, None for thick ones only."""

    session: Session
    pool: Callable[[VolumeGroup], LogicalVolume | None]

    def look(self, source: str) -> Found:
        group = self.session.see()
        name = source.removeprefix("/dev/").removeprefix(f"{group.name}/")
        if "/" in name:
            raise UsageError(f"{source} is not in volume group {group.name} of this backend")
        if (lv := group.lv(name)) is None:
            raise _no_lv(name, group)
        if why := self._unfit(group, lv):
            raise UsageError(f"{group.name}/{name} {why}")
        if lv.active and (holders := udev.holders(self.session.path(name))):
            raise InUseError(f"{group.name}/{name} is in use by {', '.join(holders)}", hint="stop what uses it first")
        return Found(name, self.path(name), lv.size)

    def _unfit(self, group: VolumeGroup, lv: LogicalVolume) -> str | None:
        """Why it cannot be a volume."""
        pool = self.pool(group)
        others = any(tag.startswith(MARK) and tag != self.session.mark for tag in lv.tags)
        for bad, why in (
            (lv.is_pool or "volctl-pool" in lv.tags, "is a thin pool"),
            (lv.is_cow, "is a snapshot of another LV"),
            (bool(group.snapshots(lv.name)), "has snapshots"),
            (
                lv.attr[:1] not in ("-", "V", "o", "r", "m"),
                "is of a kind that volctl does not make",
            ),
            (lv.is_thin and (pool is None or lv.pool != pool.name), f"is in another thin pool ({lv.pool})"),
            (lv.read_only, "is read-only"),
            (lv.suspended, "is suspended"),
            (others, "belongs to another database"),
        ):
            if bad:
                return why
        return None

    def take(self, name: str, target: Object, identity: str | None = None) -> None:
        """The mark comes before the name: what has our name and no mark would be in our way."""
        group = self.session.see()
        lv = group.lv(target.name) or group.lv(name)
        if lv is None:
            raise _no_lv(name, group)
        wanted = self.session.tags(target)
        if not wanted <= lv.tags:
            self.session.change(lambda verbs: verbs.tag(lv.name, add=wanted - lv.tags))
        if lv.name != target.name:
            self.session.change(lambda verbs: verbs.rename(lv.name, target.name))
        if lv.active:
            self.session.hide(target.name, f"{target.name} is in use")

    def give(self, volume: Object, name: str, identity: str | None = None) -> None:
        group = self.session.see()
        lv = group.lv(volume.name) or group.lv(name)
        if lv is None:
            raise _no_lv(volume.name, group)
        if lv.name != name:
            self.session.change(lambda verbs: verbs.rename(lv.name, name))
        if drop := ours(lv.tags):
            self.session.change(lambda verbs: verbs.tag(name, drop=drop))

    def free(self, wanted: str) -> str:
        taken = {lv.name for lv in self.session.see().lvs}
        first = f"released-{wanted}" if _RESERVED.match(wanted) else wanted
        names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def path(self, name: str) -> str:
        return str(self.session.path(name))


def _no_lv(name: str, group: VolumeGroup) -> NotFoundError:
    return NotFoundError(f"there is no LV {name} in volume group {group.name}")

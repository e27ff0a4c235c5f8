"""`backend init`: the thin pool and the mark, made once, and only where nothing of others is touched."""

from __future__ import annotations

from collections.abc import Callable

from volctl.errors import ConflictError
from volctl.lvm.commands import Group, Layout
from volctl.lvm.group import MARK, Session, owner
from volctl.lvm.report import VolumeGroup
from volctl.lvm.settings import Settings
from volctl.model import format_size
from volctl.records import record


@record
class Step:
    """One thing to do: the verb once it is done, the verb before, to what, and how."""

    done: str
    todo: str
    what: str
    act: Callable[[Group], None]


def plan(session: Session, group: VolumeGroup, options: Settings, layout: Layout) -> list[Step]:
    """What is still to do; `ConflictError` for a group or a pool that is not ours to prepare."""
    _refuse_others(session, group)
    steps = [*_pool(session, group, options, layout), *_when_full(session, group, options)]
    if owner(group) is None:
        what = f"volume group {group.name} as a pool of this database"
        steps.append(Step("marked", "mark", what, lambda verbs: verbs.mark({session.mark})))
    return steps


def _refuse_others(session: Session, group: VolumeGroup) -> None:
    marks = {tag for tags in (group.tags, *(lv.tags for lv in group.lvs)) for tag in tags if tag.startswith(MARK)}
    if others := marks - {session.mark}:
        said = f"volume group {group.name} belongs to another database ({min(others).removeprefix(MARK)})"
        raise ConflictError(said, hint="choose another volume group")


def _pool(session: Session, group: VolumeGroup, options: Settings, layout: Layout) -> list[Step]:
    """The thin pool, unless it is there, or `auto` finds a group in use and no size for one."""
    found = group.lv(options.pool)
    if options.provisioning == "thick" or (found and found.is_pool):
        return []
    if found:
        raise ConflictError(f"{group.name}/{options.pool} is there and is no thin pool", hint="name another pool")
    if group.lvs and options.pool_size is None:
        if options.provisioning == "auto":
            return []
        said = f"volume group {group.name} is not empty (it holds {group.lvs[0].name}), so 95 % of it is not free"
        raise ConflictError(said, hint='say how large the pool is to be: pool_size = "100G"')
    size = format_size(options.pool_size) if options.pool_size else f"95 % of {format_size(group.size)}"
    tags = {"volctl", session.mark, "volctl-pool"}
    what = f"the thin pool {group.name}/{options.pool} of {size}"
    return [Step("made", "make", what, lambda verbs: verbs.create_pool(options.pool, options.pool_size, tags, layout))]


def _when_full(session: Session, group: VolumeGroup, options: Settings) -> list[Step]:
    """Of a pool that we made, or are about to make; another's keeps its policy."""
    found = group.lv(options.pool)
    making = not found and bool(_pool(session, group, options, Layout()))
    ours = found is not None and found.is_pool and session.mark in found.tags and found.when_full != "error"
    if not (making or ours):
        return []
    what = f"{group.name}/{options.pool} to fail writes at once when it is full"
    return [Step("set", "set", what, lambda verbs: verbs.fail_when_full(options.pool))]

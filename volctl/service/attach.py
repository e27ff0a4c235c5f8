"""Attach and detach: volumes as block devices."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

from volctl.backend import Backend
from volctl.db import volumes
from volctl.errors import AccessError, ConflictError, VolctlError
from volctl.flows.attach import AttachState
from volctl.model import CreateRequest, Volume
from volctl.service.creation import create
from volctl.service.session import Session
from volctl.service.volumes import find


def attach(session: Session, ref: str, *, read_only: bool = False, sector_size: int | None = None) -> Volume:
    """Make the volume a block device; the volume, its device in `attachments`. Again is the same device.

    `sector_size` in bytes. `ConflictError` if it is attached otherwise, `AccessError` for who is not root.
    """
    volume = find(session, ref)
    with session.locked_volume(volume.id) as locks:
        volume = find(session, volume.id)
        if _is_so(volume, read_only, sector_size):
            return volume
        if volume.backend is None:  # it has failed, or is not placed yet
            raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)
        _check_rights(session, [session.env.backends.get(volume.backend)], f"attach {_named(session, volume)}")
        state = AttachState(volume.id, read_only, sector_size)
        session.engine.start("volume_attach", state, object_id=volume.id, locks=locks)
    return find(session, volume.id)


def _is_so(volume: Volume, read_only: bool, sector_size: int | None) -> bool:
    """Is it attached like that? `ConflictError` if it is, but not like that."""
    if (there := volume.attachment) is None:
        return False
    if there.read_only == read_only and sector_size in (None, there.sector_size):
        return True
    mode = "read-only" if there.read_only else "for reading and writing"
    sectors = f", with sectors of {there.sector_size} bytes" if there.sector_size else ""
    raise ConflictError(
        f"volume {volume.label} is attached already ({there.device}), {mode}{sectors}",
        hint=f"volctl detach {volume.label}, then attach it anew",
        volume=volume.id,
    )


def detach(session: Session, ref: str) -> Volume:
    """Take the device away; not attached is success. `InUseError` names who holds it."""
    volume = find(session, ref)
    with session.locked_volume(volume.id) as locks:
        volume = find(session, volume.id)
        if not volume.attachments:
            return volume
        if volume.attachment is not None:
            _check_rights(session, [session.env.backends.get(volume.backend)], f"detach {_named(session, volume)}")
        session.engine.start("volume_detach", AttachState(volume.id), object_id=volume.id, locks=locks)
    return find(session, volume.id)


def remembered(session: Session) -> list[str]:
    """Ids of the volumes, of every project, that are attached or were until a reboot."""
    with session.store.read() as tx:
        every = volumes.listing(tx, project=None, equal={}, sort="created_at", descending=False)
        return [volume.id for volume in every if volume.attachments]


def again(session: Session, volume_id: str) -> Volume:
    """Attach a volume as it was attached before."""
    volume = find(session, volume_id)
    before = volume.attachments[0] if volume.attachments else None
    if before is None:
        return volume  # detached meanwhile
    known = session.env.backends.get(volume.backend).capabilities.sector_sizes
    sectors = before.sector_size if known else None  # there nobody chose them, they are the disks' own
    return attach(session, volume_id, read_only=before.read_only, sector_size=sectors)


def create_attached(session: Session, wanted: CreateRequest) -> Volume:
    """Create and attach. If only the attach fails, the volume stays and the error says so."""
    names = [wanted.backend] if wanted.backend else [config.name for config in session.env.backends.configs]
    _check_rights(session, [session.env.backends.ask(name) for name in names], "create --attach …")
    made = create(session, wanted)
    try:
        return attach(session, made.id)
    except VolctlError as error:
        error.message = f"volume {made.label} was created and is {made.status}, but not attached: {error.message}"
        error.args = (error.message,)
        error.volume = made.id
        raise


def _named(session: Session, volume: Volume) -> str:
    """What root, of the default project, would call it."""
    return volume.label if session.project == "default" else volume.id


def _check_rights(session: Session, backends: Iterable[Backend], words: str) -> None:
    """`AccessError` with the command for root, if all of these backends attach for root only."""
    if os.geteuid() == 0 or not all(backend.capabilities.attach_needs_root for backend in backends):
        return
    places = session.env.places
    settings = [f"VOLCTL_STATE_DIR={shlex.quote(str(places.state))}"]
    if places.config is not None:
        settings.append(f"VOLCTL_CONFIG={shlex.quote(str(places.config))}")
    raise AccessError("block devices are for root only", hint=f"sudo {' '.join(settings)} volctl {words}")

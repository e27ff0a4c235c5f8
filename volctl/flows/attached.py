"""What the system says of attached volumes, and their rows with it.

A device does not outlive a reboot, nor `losetup -d`: whoever works on an attached volume asks the
backend first.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, replace

from volctl.backend import Attached
from volctl.db import events, volumes
from volctl.flows.context import Context
from volctl.model import Attachment, Object, Status, Volume

DETACHABLE = (Status.AVAILABLE, Status.IN_USE, Status.ERROR, Status.ERROR_DELETING)


def without_device(status: Status) -> Status:
    """A volume's status when it has no device (any more)."""
    return Status.AVAILABLE if status is Status.IN_USE else status


def as_found(env: Context, volume: Volume) -> Volume:
    """The volume with its attachment as the system has it now; the row is put right if that differs.

    Without its device it is available again. The attachment stays, with device null: what
    `attach --all` brings back.
    """
    noted = volume.attachment
    if noted is None or volume.status not in DETACHABLE or not env.backends.has(volume.backend):
        return volume
    found = env.backends.get(volume.backend).attached(Object("volume", volume.id), noted.device)
    if found == Attached(noted.device or "", noted.read_only, noted.sector_size):
        return volume
    return _put_right(env, volume, noted, found)


def _put_right(env: Context, volume: Volume, noted: Attachment, found: Attached | None) -> Volume:
    """Only if the row is still as it was when the system was asked: else somebody else has put it right."""
    status = volume.status
    if found is None:
        status = without_device(status)
        noted = replace(noted, device=None)
    else:
        noted = replace(noted, device=found.device, read_only=found.read_only, sector_size=found.sector_size)
    with env.store.write() as tx:
        present = volumes.get(tx, volume.id)
        if (present.status, present.attachments) != (volume.status, volume.attachments):
            return present
        request = str(uuid.uuid4())
        volumes.transition(tx, volume.id, (volume.status,), status, request, attachments=[asdict(noted)])
        events.add(tx, "attach.gone" if found is None else "attach.changed", volume.id, request, asdict(noted))
        return volumes.get(tx, volume.id)

"""What may differ, from one listing of each backend and one view of the rows; cheap, and to be confirmed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING

from volctl.backend import Backend, Listing, Problem
from volctl.db import image_cache, images, parts, quotas, snapshots, types, volumes
from volctl.db.chains import noted as noted_chains
from volctl.db.image_cache import CachedImage
from volctl.db.store import leftovers, remove_files
from volctl.engine import journal
from volctl.engine.locks import EXCLUSIVE
from volctl.errors import Failure
from volctl.flows.context import check_pools
from volctl.flows.orphan import never_was
from volctl.model import Image, Object, Snapshot, Status, Volume, is_uuid
from volctl.records import mutable
from volctl.service.doctor import chains, objects, returned, rows
from volctl.service.doctor.difference import HOLDING, RESTING, Difference

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from volctl.service.session import Session


@mutable
class View:
    """The rows in one transaction, taken after the listings."""

    volumes: dict[str, Volume]
    snapshots: dict[str, Snapshot]
    images: list[Image]
    cached: dict[str, CachedImage]
    types: set[str]
    stored: set[str]
    flows: list[rows.StuckFlow]
    reservations: set[str]
    parts: set[str]
    noted: dict[tuple[str, str], set[str | None]]
    trees: dict[str, str]
    listings: dict[str, Listing] = field(default_factory=dict)
    _shared: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict, init=False)

    def size(self, backend: str | None, target: Object) -> int | None:
        """Bytes of an object; None if it is not there. Of what cannot be seen, what its row says."""
        if backend not in self.listings:
            rows_of: Mapping[str, Mapping[str, Volume | Snapshot | CachedImage]]
            rows_of = {"volume": self.volumes, "snap": self.snapshots, "image": self.cached}
            return rows_of[target.kind][target.id].size
        found = self.listings[backend].objects.get(target)
        return found.size if found else None

    def shared(self, backend: str, file: str) -> dict[str, str]:
        """The locks of the volumes that have files in common with this one."""
        if backend not in self._shared:
            self._shared[backend] = chains.shared(self.listings[backend], self.trees)
        return self._shared[backend].get(file, {})

    def backend_of(self, snapshot: Snapshot) -> str | None:
        volume = self.volumes.get(snapshot.volume_id)
        return volume.backend if volume else None


def suspects(session: Session) -> Iterator[Difference]:
    """In the order in which they can be repaired: flows first, snapshots before volumes, those before images."""
    listings: dict[str, Listing] = {}
    unusable = list(_list_backends(session, listings))
    stored = set(os.listdir(session.env.places.images))
    with session.store.read() as tx:
        view = _view(tx, listings, stored)
    yield from unusable
    yield from view.flows
    yield from chains.suspects(view)
    yield from returned.suspects(view)
    # What waits is named before anything is deleted, which lets it go on.
    for look in (_types, _snapshots, _volumes, _attachments, _devices, _alone, _cached, _strays, _images):
        yield from look(session, view)
    for name in view.reservations:
        yield rows.Reservation(name, name)
    for path in leftovers(session.env.places.database):
        yield rows.Temporary(path.name, remove=partial(remove_files, path))


def foreign(session: Session) -> Iterator[tuple[str, str]]:
    """(backend, name) of what is not ours."""
    listings: dict[str, Listing] = {}
    for _ in _list_backends(session, listings):
        pass
    for name, listing in listings.items():
        yield from ((name, thing) for thing in listing.foreign)


def _list_backends(session: Session, listings: dict[str, Listing]) -> Iterator[Difference]:
    """Fill `listings`; those that cannot be used are told, unless they are not to be used."""
    check_pools(list(_made(session)))
    for config in session.env.backends.configs:
        try:
            backend = session.env.backends.get(config.name)
            problem = next((str(problem) for problem in backend.check() if problem.fatal), None)
            if problem is None or config.enabled:
                listings[config.name] = backend.listing()
        except Failure as error:
            if config.enabled:
                problem = str(Problem(error.message, error.hint))
                yield rows.BackendUnusable(config.name, backend=config.name, problem=problem, fix=None)
            continue
        if problem is not None and config.enabled:
            yield rows.BackendUnusable(config.name, backend=config.name, problem=problem, fix=None)


def _made(session: Session) -> Iterator[Backend]:
    """Those whose options are right."""
    for config in session.env.backends.configs:
        with suppress(Failure):
            yield session.env.backends.get(config.name)


def _view(tx: Connection, listings: dict[str, Listing], stored: set[str]) -> View:
    every = volumes.listing(tx, project=None, equal={}, sort="created_at", descending=False)
    taken = snapshots.listing(tx, project=None, equal={}, sort="created_at", descending=False)
    flows = [rows.StuckFlow(row["name"], row["id"], locks=row["locks"]) for row in journal.unfinished(tx, all_=True)]
    return View(
        {volume.id: volume for volume in every},
        {snapshot.id: snapshot for snapshot in taken},
        images.listing(tx),
        {entry.id: entry for entry in image_cache.listing(tx)},
        {found.name for found in types.listing(tx)},
        stored,
        flows,
        quotas.open_reservations(tx) - journal.reservations(tx),
        parts.ids(tx),
        noted_chains(tx),
        volumes.trees(tx),
        listings,
    )


def _types(session: Session, view: View) -> Iterator[Difference]:
    used = {volume.type for volume in view.volumes.values() if volume.type is not None}
    yield from (rows.TypeGone(name) for name in sorted(used - view.types))


def _snapshots(session: Session, view: View) -> Iterator[Difference]:
    for snapshot in view.snapshots.values():
        target, backend, locks = Object("snap", snapshot.id), view.backend_of(snapshot), {snapshot.volume_id: EXCLUSIVE}
        about = (target.name, snapshot.id, snapshot.name, backend, locks)
        if snapshot.volume_id not in view.volumes:
            if not any(target in listing.objects for listing in view.listings.values()):
                yield objects.SnapshotAlone(*about)
        elif snapshot.status not in RESTING:
            yield rows.Halted(*about, snapshot=True)
        elif snapshot.status is Status.AVAILABLE and view.size(backend, target) != snapshot.size:
            yield objects.SnapshotObject(*about)


def _volumes(session: Session, view: View) -> Iterator[Difference]:
    for volume in view.volumes.values():
        target = Object("volume", volume.id)
        about = (target.name, volume.id, volume.name, volume.backend, {volume.id: EXCLUSIVE})
        if volume.status not in RESTING:
            yield rows.Halted(*about)
        elif volume.status in HOLDING and not session.env.backends.has(volume.backend):
            where = f"backend {volume.backend}, which is not in the configuration" if volume.backend else "no backend"
            said = f"it is {volume.status} on {where}"
            yield rows.BackendUnknown(*about, problem=said)
        elif volume.status in HOLDING and view.size(volume.backend, target) != volume.size:
            yield objects.VolumeObject(*about)


def _cached(session: Session, view: View) -> Iterator[Difference]:
    for entry in view.cached.values():
        broken = entry.status != image_cache.AVAILABLE or view.size(entry.backend, entry.object) != entry.size
        gone = view.size(entry.backend, entry.object) is None
        moved = gone and any(entry.object in listing.objects for listing in view.listings.values())
        if broken and not moved and session.env.backends.has(entry.backend):
            yield objects.CachedImageObject(entry.object.name, entry.id, None, entry.backend, {entry.id: EXCLUSIVE})


def _attachments(session: Session, view: View) -> Iterator[Difference]:
    for volume in view.volumes.values():
        noted = volume.attachment
        if volume.backend not in view.listings or (noted is None and volume.status is not Status.IN_USE):
            continue
        target, locks = Object("volume", volume.id), {volume.id: EXCLUSIVE}
        found = noted and session.env.backends.get(volume.backend).attached(target, noted.device)
        if found is None and volume.status in HOLDING and view.size(volume.backend, target) is None:
            continue  # told as an object that is gone
        there = (found.device, found.read_only, found.sector_size) if found else None
        if noted is None or there != (noted.device, noted.read_only, noted.sector_size):
            yield rows.Attachment(target.name, volume.id, volume.name, volume.backend, locks)


def _devices(session: Session, view: View) -> Iterator[Difference]:
    for backend, listing in view.listings.items():
        for target, device in listing.devices.items():
            volume = view.volumes.get(target.id)
            there = target in listing.objects
            if not there and _is_elsewhere(view, target, backend):
                continue
            known = volume is not None and objects.is_attached(session, volume, backend)
            if there and (volume is None or volume.backend != backend or (known and not device.suspended)):
                continue  # without a row here it goes with the object under it, if that goes
            kind = (objects.SuspendedDevice if known else objects.StrayDevice) if there else objects.DeviceOverNothing
            name = volume.name if volume else None
            yield kind(target.name, target.id, name, backend, {target.id: EXCLUSIVE}, target=target)


def _is_elsewhere(view: View, target: Object, backend: str) -> bool:
    """By its row or by what is there: a backend may not know which one a device of what is gone was of."""
    volume = view.volumes.get(target.id)
    there = any(target in listing.objects for name, listing in view.listings.items() if name != backend)
    return there or (volume is not None and volume.backend != backend)


def _alone(session: Session, view: View) -> Iterator[Difference]:
    """Objects without a row, snapshots first, and last the images that others lie over."""
    for backend, listing in view.listings.items():
        for target in sorted(listing.objects, key=lambda target: ("snap", "volume", "image").index(target.kind)):
            if not _counted_on(view, target, backend):
                lock = view.snapshots[target.id].volume_id if target.id in view.snapshots else target.id
                locks = {lock: EXCLUSIVE} | view.shared(backend, target.name)
                about = (target.name, target.id, None, backend, locks)
                yield objects.Orphan(*about, target=target)
                if target.kind == "image":
                    yield objects.CachedImageAlone(*about, target=target)


def _counted_on(view: View, target: Object, backend: str) -> bool:
    if target.kind == "volume":
        volume = view.volumes.get(target.id)
        return volume is not None and volume.backend == backend and not never_was(volume)
    if target.kind == "image":
        entry = view.cached.get(target.id)
        return entry is not None and entry.backend == backend
    snapshot = view.snapshots.get(target.id)
    return snapshot is not None and view.backend_of(snapshot) == backend


def _strays(session: Session, view: View) -> Iterator[Difference]:
    for backend, listing in view.listings.items():
        for name, volume_id in listing.leftovers.items():
            locks = {volume_id: EXCLUSIVE} if volume_id else {}
            yield objects.Leftover(name, volume_id or None, None, backend, locks)
    yield from chains.unneeded(view)


def _images(session: Session, view: View) -> Iterator[Difference]:
    for image in view.images:
        if image.status == Status.AVAILABLE:
            yield rows.ImageFile(image.location, image.id, image.name, locks={image.id: EXCLUSIVE})
    known = {image.id for image in view.images} | view.parts
    for name in sorted(view.stored):
        image_id = name.partition(".")[0]
        if is_uuid(image_id) and image_id not in known:
            yield rows.StoredAlone(name, image_id, locks={image_id: EXCLUSIVE})

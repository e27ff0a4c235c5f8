"""`doctor --rebuild`: a database that is lost, made again from what the objects carry (`volctl.db.about`).

Not known any more: registered images and what cached ones are of, limits, events, flows, and of a volume
its attempts, its explanation and when it became available. All or nothing: until the new file is in place
there is none.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from volctl.backend import Attached, Backend
from volctl.config import Config, Places, load, places
from volctl.db import events, image_cache, snapshots, types, volumes
from volctl.db.image_cache import CachedImage
from volctl.db.store import Store, keep_owner, open_store, recreate
from volctl.engine.locks import LockDirectory
from volctl.errors import BackendError, ConflictError, DatabaseError, LockedError, NotFoundError
from volctl.flows.context import Backends
from volctl.model import Json, Object, SourceKind, Status, now
from volctl.records import mutable
from volctl.service.doctor import chains
from volctl.service.doctor.difference import DRIFT
from volctl.service.doctor.finding import Finding
from volctl.service.doctor.integrity import check_integrity, check_writable
from volctl.service.doctor.told import checked
from volctl.service.session import Options, Watcher, prepare

if TYPE_CHECKING:
    from sqlalchemy import Connection

UNTOLD = "it does not carry what it is: it may be half made, or its name and the like are lost"
EMPTY = "it holds no disk: it is cut off"


def plan(options: Options) -> str:
    """What would be done, for a question. `ConflictError` for a database that can be used."""
    where, config = _open(options)
    prepare(where)
    _check_lost(where.database)
    database = _owner(config, where)
    lines = [f"This makes {where.database} again, from what the backends hold of database {database}."]
    if where.database.exists():
        lines.append("The file that is there is kept beside it, under another name.")
    return "\n".join([*lines, "If that database is in use elsewhere, use it there instead."])


def rebuild(options: Options, watcher: Watcher) -> list[Finding]:
    """Make the database again; every volume and snapshot there is now, and what is not known of them."""
    where, config = _open(options)
    prepare(where)
    rows = _Rows()

    def may_replace() -> None:
        _check_lost(where.database, alone=True)
        _check_idle(where.locks)

    _check_lost(where.database)
    _check_idle(where.locks)
    fill: Callable[[Store], None] = lambda store: _fill(store, config, where, rows)
    aside = recreate(where.database, _owner(config, where), fill, may_replace)
    if aside:
        watcher.warn(f"the database that could not be used is now {aside}")
    if not rows.told:
        watcher.warn("the backends hold no volume and no snapshot: the database has none")
    watcher.warn("limits, registered images and the history are not on the backends; set and add them again")
    return rows.told


def _open(options: Options) -> tuple[Places, Config]:
    where = places(options.config, options.state_dir)
    return where, load(where)


def _check_lost(database: Path, *, alone: bool = False) -> None:
    """`ConflictError` for one that can be used, its own error for one that only we cannot."""
    if not database.exists():
        return
    try:
        store = open_store(database, alone=alone)
        try:
            check_writable(store)
            check_integrity(store)
        finally:
            store.close()
    except DatabaseError as error:
        if error.details.get("whole"):
            raise
        return
    raise ConflictError(f"the database {database} is there and can be used", hint="volctl doctor looks for differences")


def _check_idle(locks: Path) -> None:
    directory = LockDirectory(locks, keep_owner)
    for path in locks.iterdir():
        if (held := directory.try_acquire({path.name: "exclusive"})) is None:
            raise LockedError(f"volume {path.name} is being worked on by a command of the lost database")
        held.close()


def _owner(config: Config, where: Places) -> str:
    """The one database whose objects the configured backends hold, or else whose marks they carry."""
    owners = _owners(config, where, empty=False) or _owners(config, where, empty=True)
    if not owners:
        raise NotFoundError("no configured backend carries the mark of a database", hint="see `volctl config show`")
    if len(set(owners.values())) > 1:
        said = "; ".join(f"{name}: {owner}" for name, owner in owners.items())
        raise ConflictError(f"the backends are of several databases ({said})", hint="configure those of one")
    return next(iter(owners.values()))


def _owners(config: Config, where: Places, *, empty: bool) -> dict[str, str]:
    backends = Backends(config, "", where.state)
    names = [backend.name for backend in config.backends]
    return {name: owner for name in names if (owner := backends.owner(name, empty=empty))}


def _fill(store: Store, config: Config, where: Places, rows: _Rows) -> None:
    backends = Backends(config, store.uuid, where.state, store)
    for backend_config, backend in backends.all():
        if problem := next((problem for problem in backend.check() if problem.fatal), None):
            hint = "make it usable, or take it out of the configuration"
            raise BackendError(f"backend {backend.name} cannot be read: {problem.message}", hint=hint)
        rows.look(backend, backend_config.availability_zone, backend.restore())
    rows.stand_in()
    rows.plant()
    with store.write() as tx:
        rows.insert(tx)


@mutable
class _Rows:
    """Rows as they are made again."""

    types: dict[str, Json] = field(default_factory=dict)
    volumes: dict[str, Json] = field(default_factory=dict)
    snapshots: dict[str, Json] = field(default_factory=dict)
    cached: list[CachedImage] = field(default_factory=list)
    told: list[Finding] = field(default_factory=list)
    _names: set[tuple[str, str, str]] = field(default_factory=set)
    _untold: set[str] = field(default_factory=set)
    _bottoms: dict[Object, tuple[str, str]] = field(default_factory=dict)

    def look(self, backend: Backend, zone: str, broken: Mapping[Object, str]) -> None:
        """All that is on a backend; what is `broken` becomes a row in `error`, too."""
        listing = backend.listing()
        sizes = {target: info.size for target, info in listing.objects.items()}
        bottoms = chains.bottoms(listing.links)
        for target in backend.described():
            if target not in sizes:
                continue
            if target.kind == "image":
                self.cached.append(lost_image(target, backend.name, sizes[target]))
                continue
            made = self.volumes if target.kind == "volume" else self.snapshots
            if target.id in made:
                self._tell(target, made[target.id], backend.name, "it is on another backend, too; that one counts")
                continue
            about, size = checked(target), sizes[target]
            problem = broken.get(target) or (UNTOLD if target.about is None else None if size else EMPTY)
            row = self._common(target, about, size, backend.name, problem)
            if target.about is None:
                self._untold.add(target.id)
            elif target in broken:
                row["fault"]["code"] = DRIFT
            if (bottom := bottoms.get(target.name, target.name)) != target.name:
                self._bottoms[target] = (backend.name, bottom)
            if target.kind == "volume":
                row |= _of_volume(about, backend.name, zone, listing.devices.get(target))
            else:
                row |= _of_snapshot(about)
                row["backend"] = backend.name
            made[target.id] = row

    def _common(self, target: Object, about: Json, size: int, backend: str, problem: str | None) -> Json:
        row: Json = {
            "id": target.id,
            "name": about.get("name"),
            "project": about.get("project") or "default",
            "description": about.get("description"),
            "size": size,
            "status": Status.ERROR if problem else Status.AVAILABLE,
            "fault": {"code": "backend", "message": problem} if problem else None,
            "type": self._type(about),
            "bootable": bool(about.get("bootable")),
            "properties": about.get("properties") or {},
            "created_at": about.get("created_at") or now(),
        }
        if (name := row["name"]) and (taken := (target.kind, row["project"], name)) in self._names:
            row["name"], problem = None, problem or f"another has its name {name!r}"
        elif name:
            self._names.add(taken)
        self._tell(target, row, backend, problem)
        return row

    def _tell(self, target: Object, row: Json, backend: str, problem: str | None) -> None:
        said = problem or "made again"
        self.told.append(Finding("rebuilt", target.name, target.id, row["name"], backend, said, None, fixed=True))

    def _type(self, about: Json) -> str | None:
        if (name := about.get("type")) is None:
            return None
        specs, description, created_at = about.get("specs") or [{}, None, None]
        row = {"name": name, "specs": specs, "description": description, "created_at": created_at or now()}
        self.types.setdefault(name, row)
        return str(name)

    def stand_in(self) -> None:
        """A snapshot keeps its content also when its volume is not there: a row in `error` takes its place."""
        for snapshot in self.snapshots.values():
            backend, volume_id = snapshot.pop("backend"), snapshot["volume_id"]
            volume = self.volumes.get(volume_id)
            if volume and volume["backend"] == backend:
                continue
            if volume or volume_id is None:
                snapshot["volume_id"] = volume_id = str(uuid.uuid4())
                said = f"it stands in for the volume of snap-{snapshot['id']}, which is not known"
            else:
                said = f"volume-{volume_id} is not on any backend"
            about, target = {"project": snapshot["project"]}, Object("volume", volume_id)
            row = self._common(target, about, snapshot["size"], backend, said)
            self.volumes[volume_id] = row | _of_volume({}, backend, None, None)
            self._untold.add(volume_id)

    def plant(self) -> None:
        """Volumes that do not say of which tree they are join that of the files that theirs lie over."""
        trees: dict[tuple[str, str], set[str]] = {}
        for target, bottom in self._bottoms.items():
            volume_id = target.id if target.kind == "volume" else self.snapshots[target.id]["volume_id"]
            trees.setdefault(bottom, set()).add(volume_id)
        for ids in trees.values():
            told = {self.volumes[each]["tree"] or each for each in ids - self._untold}
            root = min(told or ids)
            for each in ids & self._untold - {root}:
                self.volumes[each]["tree"] = root

    def insert(self, tx: Connection) -> None:
        request = str(uuid.uuid4())
        for row in self.types.values():
            types.restore(tx, row)
        for entry in self.cached:
            image_cache.insert_entry(tx, entry)
        for noun, rows in (("volume", self.volumes), ("snapshot", self.snapshots)):
            for row in rows.values():
                if noun == "volume":
                    volumes.insert_row(tx, _with_times(row))
                else:
                    snapshots.insert_row(tx, row)
                events.add(tx, f"{noun}.status", row["id"], request, {"from": None, "to": row["status"]})


def lost_image(target: Object, backend: str, size: int) -> CachedImage:
    """An image-volume of which nobody knows the image: never cloned again, and the first to go."""
    key, long_ago = f"lost:{target.id}", "1970-01-01T00:00:00.000000Z"
    sizes = (size, 0, size)
    return CachedImage(target.id, backend, key, key, "", "raw", None, *sizes, image_cache.AVAILABLE, long_ago, long_ago)


def _with_times(row: Json) -> Json:
    if row["attachments"] and row["status"] is Status.AVAILABLE:
        row["status"] = Status.IN_USE
    return row | {"available_at": row["created_at"], "updated_at": row["created_at"]}


def _of_volume(about: Json, backend: str, zone: str | None, device: Attached | None) -> Json:
    kind, source = SourceKind(about.get("source_kind", SourceKind.BLANK)), about.get("source_id")
    of_file = about.get("source_name") if kind is SourceKind.IMAGE else None
    there = {"device": device.device, "read_only": device.read_only, "attached_at": now()} if device else {}
    return {
        "backend": backend,
        "availability_zone": about.get("availability_zone") or zone,
        "protected": bool(about.get("protected")),
        "source_kind": kind,
        "source_id": source,
        "source_name": about.get("source_name"),
        "tree": about.get("tree"),
        "attachments": [there | {"sector_size": device.sector_size}] if device else [],
        "requested": {"size": None, "type": about.get("type"), "source": [kind, source or of_file]},
    }


def _of_snapshot(about: Json) -> Json:
    return {"volume_id": about.get("volume_id"), "volume_properties": about.get("volume_properties") or {}}

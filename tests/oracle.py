"""What must always hold (SPEC, section 11), looked at from outside: shares no code with volctl.

Reads the database with sqlite3, the pools with os, the machine through /proc and /sys. To be run when
no command runs and one more has run since the last one died.

    problems = check(World(state, {"a": Path("/pool/a")}, contents={"data": Content(Path("disk.raw"))}))
    python tests/oracle.py STATE NAME=DIRECTORY…        # prints the problems, exit 12 if there are any
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

Row = dict[str, Any]
CHUNK = 1 << 20
OBJECT = re.compile(r"(volume|snap|image)-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
LAYER = re.compile(r"layer-[0-9a-f-]{36}")
DEVICE = re.compile(r"device-(?:ro-)?([0-9a-f-]{36})")
"""The fake backend's device of an attached volume."""
OURS_IN_A_POOL = {".volctl", "calls", "fail", "stats"}
"""The marker, and what a test itself puts into a pool of the backend `fake`."""
SIDECAR = ".volctl-"
"""Before an object's name: what it is about, where its own file has no place for that."""
SERVERS = ("/usr/bin/qemu-storage-daemon", "/usr/bin/qemu-nbd")
STATE_ENTRIES = {"volctl.db", "volctl.db-wal", "volctl.db-shm", "locks", "images", "volumes"}
RESTING = {
    "volumes": {"available", "in-use", "error", "error_deleting"},
    "snapshots": {"available", "error", "error_deleting"},
}
IMAGE_RESTING = {"available", "error", "error_deleting"}
TABLES = ("volumes", "snapshots", "images", "parts", "cached_images", "reservations", "flows", "journal", "events")
ENDED = {"done", "undone", "abandoned"}


@dataclass(frozen=True, slots=True)
class Content:
    """What an object reads as: the first `length` bytes of a file (None: all of it), then zeros."""

    source: Path | None = None
    length: int | None = None


ZEROS = Content()
Marks = dict[str, tuple[str, int, int]]
"""Of files that are not ours: digest, mtime in ns, mode."""


@dataclass(frozen=True, slots=True)
class World:
    """What the test knows. `contents` by name or id, of a cached image by its file; `foreign` as `marks` gave it.

    `stuck` are ids or names of objects whose flow may be open and stuck, `unfinished` also allows
    flows of another version. `quota` is what `volctl quota show --json` printed.
    """

    state: Path
    pools: Mapping[str, Path]
    contents: Mapping[str, Content] = field(default_factory=dict)
    foreign: Mapping[str, Marks] = field(default_factory=dict)
    stuck: frozenset[str] = frozenset()
    quota: Sequence[Row] | None = None
    qcow2: bool = False
    """The pools hold qcow2 files, and layers that these lie over."""


def check(world: World) -> list[str]:
    """Every violation, a sentence each; empty when all holds."""
    tables = load(world.state)
    return [*_objects(world, tables), *_foreign(world), *check_rows(world, tables)]


def check_rows(world: World, tables: dict[str, list[Row]]) -> list[str]:
    """What can be told without the objects, wherever these are: rows, quota, events, and the machine."""
    found = [*_statuses(world, tables), *_reservations(world, tables), *_flows(world, tables), *_quota(world, tables)]
    return [*found, *_events(tables), *_leftovers(world, tables)]


def load(state: Path) -> dict[str, list[Row]]:
    """Every table as dictionaries, JSON columns decoded; read through SQLite's own integrity check."""
    with sqlite3.connect(f"file:{state}/volctl.db?mode=rw", uri=True) as connection:
        connection.row_factory = sqlite3.Row
        assert (said := _integrity(connection)) == "ok", said
        tables = {name: [_decoded(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in TABLES}
        tables["meta"] = [dict(row) for row in connection.execute("SELECT * FROM meta")]
        tables["dangling"] = [dict(row) for row in connection.execute("PRAGMA foreign_key_check")]
    connection.close()
    return tables


def is_usable(state: Path) -> bool:
    """Is there a database, and not a damaged one?"""
    if not (state / "volctl.db").exists():
        return False
    with closing(sqlite3.connect(f"file:{state}/volctl.db?mode=rw", uri=True)) as connection:
        return _integrity(connection) == "ok"


def _integrity(connection: sqlite3.Connection) -> str:
    (said,) = connection.execute("PRAGMA integrity_check").fetchone()
    return str(said)


def _decoded(row: sqlite3.Row) -> Row:
    values = dict(row)
    for key in ("fault", "cause", "state", "locks", "payload", "attempts", "plan", "tasks", "identity", "attachments"):
        if isinstance(values.get(key), str) and values[key][:1] in ("{", "["):
            values[key] = json.loads(values[key])
    return values


# -- 11.1, 11.2, 11.6: rows and objects


def _statuses(world: World, tables: dict[str, list[Row]]) -> Iterator[str]:
    for kind, resting in RESTING.items():
        for row in tables[kind]:
            if row["status"] not in resting:
                yield f"{kind}: {_label(row)} is still {row['status']}"
            if row["status"].startswith("error") and not (row["fault"] or {}).get("message"):
                yield f"{kind}: {_label(row)} is {row['status']} without a fault"
            if row["status"] in ("available", "in-use") and row["fault"]:
                yield f"{kind}: {_label(row)} is {row['status']} with fault {row['fault']}"
            if row.get("promised"):
                yield f"{kind}: {_label(row)} is at rest, but promises {row['promised']} bytes"
    for row in tables["cached_images"]:
        if row["status"] != "available" and row["id"] not in world.stuck:
            yield f"cached image {row['id']} of {row['location']} is {row['status']}"
    for row in tables["dangling"]:
        yield f"a row of {row['table']} refers to one that is not there"


def _label(row: Row) -> str:
    return f"{row.get('name') or '-'} ({row['id']})"


def _objects(world: World, tables: dict[str, list[Row]]) -> Iterator[str]:
    volumes = {row["id"]: row for row in tables["volumes"]}
    rows = {f"volume-{row['id']}": row for row in tables["volumes"]}
    rows |= {f"snap-{row['id']}": row | {"backend": backend_of(row, volumes)} for row in tables["snapshots"]}
    rows |= {f"image-{row['id']}": row | {"name": row["location"]} for row in tables["cached_images"]}
    held = {(pool, name) for pool, path in world.pools.items() for name in os.listdir(path)}
    for name, row in rows.items():
        if row["status"] in ("available", "in-use"):
            yield from _must_be_there(world, name, row)
    for pool, name in sorted(held):
        if name.startswith(SIDECAR):
            yield from _beside_something(world.pools[pool], name)
        else:
            yield from _may_be_there(world, pool, name, rows)
    yield from _images(world, tables["images"], {f"{row['id']}.part" for row in tables["parts"]})


def backend_of(snapshot: Row, volumes: dict[str, Row]) -> str | None:
    volume = volumes.get(snapshot["volume_id"])
    return volume["backend"] if volume else None


def _must_be_there(world: World, name: str, row: Row) -> Iterator[str]:
    if row["backend"] not in world.pools:
        yield f"{name} is {row['status']} on an unknown backend {row['backend']}"
        return
    path = world.pools[row["backend"]] / name
    try:
        size = size_of(path, qcow2=world.qcow2)
    except FileNotFoundError:
        yield f"{name} ({row['name']}) is {row['status']}, but there is no {path}"
        return
    for attachment in row.get("attachments", ()) if row["status"] == "in-use" and row["id"] not in world.stuck else ():
        if not os.path.exists(attachment["device"]):
            yield f"{name} ({row['name']}) is in-use, but there is no {attachment['device']}"
    if size != row["size"]:
        yield f"{name} ({row['name']}) has {size} bytes, its row says {row['size']}"
    content = world.contents.get(row["id"]) or world.contents.get(row["name"] or "")
    if content is None and row.get("source_kind") == "blank":
        content = ZEROS
    if content is None:
        yield f"{name} ({row['name']}): nobody said what it must read as"
    elif difference := differs(path, content, qcow2=world.qcow2):
        yield f"{name} ({row['name']}) {difference}"


def _may_be_there(world: World, pool: str, name: str, rows: dict[str, Row]) -> Iterator[str]:
    if name in OURS_IN_A_POOL or name in world.foreign.get(pool, {}):
        return
    if device := DEVICE.fullmatch(name):
        row = rows.get(f"volume-{device[1]}")
        if (row is None or row["status"] != "in-use") and device[1] not in world.stuck:
            yield f"{pool}/{name} is the device of a volume that is {row['status'] if row else 'gone'}"
    elif world.qcow2 and LAYER.fullmatch(name):
        if name not in needed_layers(world.pools[pool]):
            yield f"{pool}/{name} is a layer that nothing needs"
    elif not OBJECT.fullmatch(name):
        yield f"{pool}/{name} is left behind"
    elif name not in rows:
        yield f"{pool}/{name} has no row"
    elif rows[name]["backend"] != pool:
        yield f"{pool}/{name} is on another backend than its row says: {rows[name]['backend']}"
    elif never_was(rows[name]) and not {rows[name]["id"], rows[name]["name"]} & world.stuck:
        yield f"{pool}/{name} is what a failed create left"


def _beside_something(pool: Path, name: str) -> Iterator[str]:
    beside = name.removeprefix(SIDECAR)
    if not OBJECT.fullmatch(beside) or not (pool / beside).exists():
        yield f"{pool}/{name} is left without its object"


def never_was(row: Row) -> bool:
    """In `error` since it was being made; a snapshot has no other way to get there."""
    return row["status"] == "error" and not row.get("available_at")


def needed_layers(pool: Path) -> set[str]:
    """Layers of qcow2 files: a snapshot's has that name, too, any other lies beneath two files at least."""
    from tests.qcow2_files import backing

    names = os.listdir(pool)
    layers = {name for name in names if LAYER.fullmatch(name)}
    snapshots = {name for name in names if name.startswith("snap-")}
    files = {name for name in names if OBJECT.fullmatch(name)} - snapshots | layers
    below = [backing(pool / name) for name in files]
    return {name for name in layers if below.count(name) > 1 or name.replace("layer-", "snap-") in names}


def size_of(path: Path, *, qcow2: bool) -> int:
    """Of the disk, in bytes."""
    size = os.lstat(path).st_size
    if qcow2:
        from tests.qcow2_files import virtual_size

        return virtual_size(path)
    return size


def _disk(path: Path, qcow2: bool) -> BinaryIO:
    if qcow2:
        from tests.qcow2_files import read

        return io.BytesIO(read(path))
    return open(path, "rb")


def differs(path: Path, content: Content, *, qcow2: bool = False) -> str | None:
    """Where the disk at `path` reads otherwise than it should; None if it does not."""
    with _disk(path, qcow2) as file:
        position = 0
        for wanted in _source(content):
            if (found := file.read(len(wanted))) != wanted:
                return f"differs from its source at {position + _first_difference(found, wanted)}"
            position += len(wanted)
        while tail := file.read(CHUNK):
            if tail.count(0) != len(tail):
                return f"does not read as zeros behind {position}"
            position += len(tail)
    return None


def _source(content: Content) -> Iterator[bytes]:
    if content.source is None:
        return
    left = os.path.getsize(content.source) if content.length is None else content.length
    with open(content.source, "rb") as file:
        while left and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


def _first_difference(found: bytes, wanted: bytes) -> int:
    same = (index for index, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b)
    return next(same, len(found))


def _images(world: World, rows: list[Row], parts: set[str]) -> Iterator[str]:
    store = world.state / "images"
    owned = {row["id"]: row for row in rows if row["owned"]}
    yield from (f"image {row['name']} is {row['status']}" for row in rows if row["status"] not in IMAGE_RESTING)
    whole = {name: row for name, row in owned.items() if row["status"] == "available"}
    there = set(os.listdir(store)) if store.is_dir() else set()
    for name in sorted(parts):
        if name not in there or not os.path.getsize(store / name):
            yield f"images/{name} has a row, and nothing of it was fetched"
    for name in sorted(there - owned.keys() - parts):
        yield f"images/{name} has no row"
    for name in sorted(whole.keys() - there):
        yield f"image {owned[name]['name']} has no file"
    for name in sorted(whole.keys() & there):
        size = os.path.getsize(store / name)
        if size != whole[name]["size"]:
            yield f"image {owned[name]['name']} has {size} bytes, its row says {owned[name]['size']}"


# -- 11.3: what is not ours


def marks(directory: Path) -> Marks:
    """Everything under `directory` that is not ours now, to be given back in `World.foreign`."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if (
            name not in OURS_IN_A_POOL
            and not name.startswith(SIDECAR)
            and not OBJECT.fullmatch(name)
            and not LAYER.fullmatch(name)
        ):
            status = path.lstat()
            found[name] = (_digest(path), status.st_mtime_ns, status.st_mode)
    return found


def _digest(path: Path) -> str:
    if path.is_symlink():
        return os.readlink(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _foreign(world: World) -> Iterator[str]:
    for pool, before in world.foreign.items():
        now = marks(world.pools[pool])
        for name, mark in before.items():
            if now.get(name) != mark:
                yield f"{pool}/{name} is not ours and was changed"


# -- 11.4: quota and flows


def _reservations(world: World, tables: dict[str, list[Row]]) -> Iterator[str]:
    allowed = {row["state"].get("reservation") for row in tables["flows"] if not row["ended_at"]} if world.stuck else ()
    for row in tables["reservations"]:
        if row["id"] not in allowed:
            yield f"a reservation is left: {row}"


def _flows(world: World, tables: dict[str, list[Row]]) -> Iterator[str]:
    names = {row["id"]: row["name"] for kind in ("volumes", "snapshots", "images") for row in tables[kind]}
    open_flows = {row["id"]: row for row in tables["flows"] if row["ended_at"] is None}
    for row in open_flows.values():
        if not {row["object_id"], names.get(row["object_id"])} & world.stuck or row["phase"] != "stuck":
            yield f"flow {row['name']} of {row['object_id']} is {row['phase']} and has not ended"
    for row in tables["flows"]:
        if row["ended_at"] is not None and row["phase"] not in ENDED:
            yield f"flow {row['name']} has ended as {row['phase']}"
    for line in tables["journal"]:
        if line["state"] in ("begun", "failed") and line["flow_id"] not in open_flows:
            flow = next(row for row in tables["flows"] if row["id"] == line["flow_id"])
            if flow["phase"] != "abandoned":
                yield f"line {line['task']} of flow {flow['name']} ({flow['phase']}) is {line['state']}"


def _quota(world: World, tables: dict[str, list[Row]]) -> Iterator[str]:
    if world.quota is None:
        return
    volumes = [row for row in tables["volumes"] if row["project"] == "default"]
    taken = [row for row in tables["snapshots"] if row["project"] == "default"]
    wanted = {"volumes": len(volumes), "snapshots": len(taken), "gigabytes": _bytes(volumes) + _bytes(taken)}
    for line in world.quota:
        resource = line["resource"]
        if resource in wanted and line["in_use"] != wanted[resource]:
            yield f"quota {resource}: in use {line['in_use']}, the rows sum to {wanted[resource]}"
        if line["reserved"]:
            yield f"quota {resource}: {line['reserved']} reserved while no command runs"


def _bytes(rows: list[Row]) -> int:
    return sum(row["size"] for row in rows)


# -- events: one chain of statuses for each object


def _events(tables: dict[str, list[Row]]) -> Iterator[str]:
    now: dict[str, str | None] = {}
    for event in sorted(tables["events"], key=lambda event: int(event["id"])):
        if event["type"] not in ("volume.status", "snapshot.status"):
            continue
        before = now.get(event["object"])
        if event["payload"]["from"] != before:
            yield f"event {event['id']} of {event['object']}: from {event['payload']['from']}, but it was {before}"
        now[event["object"]] = event["payload"]["to"]
    for kind in RESTING:
        for row in tables[kind]:
            if now.get(row["id"]) != row["status"]:
                yield f"{kind}: {_label(row)} is {row['status']}, its events say {now.get(row['id'])}"


# -- 11.5: what a command may not leave on the machine


def _leftovers(world: World, tables: dict[str, list[Row]]) -> Iterator[str]:
    for name in sorted(set(os.listdir(world.state)) - STATE_ENTRIES):
        yield f"{name} is left in the state directory"
    living = {row["id"] for kind in ("volumes", "images", "cached_images") for row in tables[kind]}
    living |= {name for row in tables["flows"] if row["ended_at"] is None for name in row["locks"]}
    locks = world.state / "locks"
    for name in sorted(set(os.listdir(locks)) - living if locks.is_dir() else ()):
        yield f"locks/{name} is left, but there is no such object"
    roots = [os.path.realpath(path) for path in (world.state, *world.pools.values())]
    attached = {row["id"] for row in tables["volumes"] if row["status"] == "in-use"} | world.stuck
    yield from _machine(roots, exports(tables), attached)


def exports(tables: dict[str, list[Row]]) -> str:
    """Where the disks of attached qcow2 files are shown."""
    (uuid,) = (row["value"] for row in tables["meta"] if row["key"] == "uuid")
    return f"/run/volctl/{uuid}"


def _machine(roots: list[str], shown: str, attached: Set[str]) -> Iterator[str]:
    for pattern in ("loop*/loop/backing_file", "nbd*/backend"):
        for backing in Path("/sys/block").glob(pattern):
            if (file := _read(backing)) and _under(file, [*roots, shown]) and _volume(file) not in attached:
                yield f"{backing.parts[3]} is still attached to {file}"
    for place in (line.split()[4] for line in _read(Path("/proc/self/mountinfo")).split("\n")):
        if _under(place, roots) or (_under(place, [shown]) and _volume(place) not in attached):
            yield f"{place} is still mounted"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid() or _serves(pid, attached):
            continue
        if file := next((f for f in _opened(pid) if _under(f, roots)), ""):
            yield f"process {pid} ({_read(Path('/proc', pid, 'comm'))}) still has {file}"


def _volume(path: str) -> str:
    return path.removesuffix(" (deleted)").rpartition("volume-")[2]


def _serves(pid: str, attached: Set[str]) -> bool:
    """Is it the server of an attached volume's device?"""
    line = _read(Path("/proc", pid, "cmdline"))
    return line.startswith(SERVERS) and any(f"volume-{id}" in line for id in attached)


def _opened(pid: str) -> Iterator[str]:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                yield os.readlink(entry.path)
    except OSError:
        return


def _under(path: str, roots: list[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def main(words: list[str]) -> int:
    state, *pools = words
    named = {name: Path(path) for name, _, path in (word.partition("=") for word in pools)}
    problems = check(World(Path(state), named))
    print("\n".join(problems))
    return 12 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

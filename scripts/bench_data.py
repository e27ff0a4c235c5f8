"""What `scripts/bench` measures on: states with many volumes, disk images, a file system that shares blocks."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench_measure import GiB, MiB

BATCH = 10_000


def fill(database: Path, count: int) -> None:
    """Bring the database to `count` volumes of 1 MiB, each with an ended flow and two events."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.row_factory = sqlite3.Row
        have = connection.execute("SELECT count(*) FROM volumes").fetchone()[0]
        volume = dict(connection.execute("SELECT * FROM volumes LIMIT 1").fetchone())
        flow = dict(connection.execute("SELECT * FROM flows LIMIT 1").fetchone())
        event = dict(connection.execute("SELECT * FROM events LIMIT 1").fetchone())
        del flow["number"], event["id"]
        for first in range(have, count, BATCH):
            ids = {f"fill-{number}": str(uuid.uuid4()) for number in range(first, min(first + BATCH, count))}
            _copies(connection, "volumes", [volume | {"id": id, "name": name, "size": MiB} for name, id in ids.items()])
            _copies(connection, "flows", [flow | {"id": str(uuid.uuid4()), "object_id": id} for id in ids.values()])
            _copies(connection, "events", [event | {"object": id} for id in ids.values() for _ in range(2)])


def _copies(connection: sqlite3.Connection, table: str, rows: list[dict[str, object]]) -> None:
    columns = list(rows[0])
    marks = ", ".join(f":{column}" for column in columns)
    connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)


def image(directory: Path, data: int, size: int) -> Path:
    """A qcow2 of `size` bytes that holds `data` bytes of what nothing compresses, in pieces of 16 MiB."""
    raw, qcow2 = directory / "source.raw", directory / f"{data // MiB}-MiB.qcow2"
    pieces, step = data // (16 * MiB) or 1, size // (data // (16 * MiB) or 1)
    with raw.open("wb") as file:
        file.truncate(size)
        for number in range(pieces):
            file.seek(number * step)
            file.write(random.randbytes(min(16 * MiB, data)))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    raw.unlink()
    os.sync()
    return qcow2


def guest_data(path: Path) -> int:
    """The bytes that an image maps to data which is not zeros, as QEMU sees them."""
    told = subprocess.run(["qemu-img", "map", "--output=json", path], check=True, capture_output=True, text=True)
    return sum(extent["length"] for extent in json.loads(told.stdout) if extent["data"] and not extent["zero"])


@contextmanager
def xfs(directory: Path) -> Iterator[Path]:
    """A loop-mounted xfs with reflinks, gone when the block ends."""
    disk, mount = directory / "xfs.img", directory / "xfs"
    with disk.open("wb") as file:
        file.truncate(8 * GiB)
    mount.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)
        disk.unlink()

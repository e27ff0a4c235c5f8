"""image_fetch: a file from a URL into the image store, checked, before anything is made from it.

What is fetched is kept, like an image that docker pulled: the next command for the same URL asks the
server whether it has changed. What was fetched of a file when a command ended too early is kept, too,
as `ID.part` with a row of its own, if the server can be asked for the rest.
"""

from __future__ import annotations

import os
from dataclasses import asdict, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, images, parts
from volctl.db import store as db
from volctl.engine.running import Run
from volctl.engine.task import Flow, Task
from volctl.errors import BackendError, ImageError, ImageTooBigError, NoSpaceError
from volctl.flows.context import Context
from volctl.flows.image import new_of, part_of, stored
from volctl.images import checksums, gate, packed, signatures, store
from volctl.images.fetch import Download
from volctl.images.formats.magic import identify
from volctl.model import GiB, Json, KiB, format_size, now
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection

KEEPS = ("cancelled", "timeout", "backend")
"""Causes after which what was fetched is good to go on with."""
STEP = 512 * KiB
PAGES = (b"<!doctype html", b"<html")


@mutable
class FetchState:
    """What is to be fetched, and what it turned out to be. Sizes in bytes.

    `volume_size` is that of the volume it is for, if one was asked for. `signature` is what
    `signatures.verify` takes. `kept`: what was fetched stays, though the flow is undone.
    """

    image_id: str
    url: str
    mark: Json
    declared: str = "auto"
    volume_size: int | None = None
    checksum: str | None = None
    signature: Json | None = None
    packed: str | None = None
    kept: bool = False
    format: str = "raw"
    size: int = 0
    virtual_size: int = 0
    sha256: str | None = None
    identity: Json = field(default_factory=dict)


FetchRun: TypeAlias = Run[Context, FetchState]


class FetchTask(Task[Context, FetchState]):
    """A task of the fetch flow."""


def _unpacked(run: FetchRun) -> Path:
    return new_of(run.env, run.state.image_id)


def _whole(run: FetchRun) -> Path:
    """The image as it will be: what was fetched, or what that held."""
    return _unpacked(run) if run.state.packed else part_of(run.env, run.state.image_id)


def boot() -> str:
    """The run of this kernel, random(4): another one may follow a power cut."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class PartEntryTask(FetchTask):
    """The row of what is not whole yet, so that no file of the store is unknown."""

    def record(self, tx: Connection, run: FetchRun) -> None:
        state = run.state
        row = {"id": state.image_id, "origin": state.url, "mark": state.mark, "boot": boot(), "created_at": now()}
        parts.put(tx, row)

    def unrecord(self, tx: Connection, run: FetchRun) -> None:
        if not run.state.kept:
            parts.remove(tx, run.state.image_id)


class DownloadTask(FetchTask):
    """Fetches, and hashes on the way."""

    def plan(self, run: FetchRun) -> Json:
        return {"file": f"{run.state.image_id}.part"}

    def execute(self, run: FetchRun) -> None:
        state, download = run.state, run.env.downloads[run.state.url]
        hashes = checksums.Hashes({"sha256"} | ({_expected(state).algorithm} if state.checksum else set()))
        with store.opened(part_of(run.env, state.image_id), f"fetch {state.url}") as fd:
            _receive(run, download, fd, hashes)
        if state.checksum:
            checksums.compare(state.url, _expected(state), hashes.digest(_expected(state).algorithm))
        state.sha256 = hashes.digest("sha256")

    def revert(self, run: FetchRun) -> None:
        part = part_of(run.env, run.state.image_id)
        resumable = run.cause is not None and run.cause.code in KEEPS and run.state.mark.get("strong")
        run.state.kept = bool(resumable) and part.exists() and part.stat().st_size > 0
        if not run.state.kept:
            store.remove(part)


def _expected(state: FetchState) -> checksums.Checksum:
    return checksums.parse(state.checksum or "")


def _receive(run: FetchRun, download: Download, fd: int, hashes: checksums.Hashes) -> None:
    """Write what comes behind what is there, which is hashed first; anew if the server begins anew."""
    os.ftruncate(fd, download.position)
    hashes.read(fd, download.position)
    limit, length = _limit(run), download.position
    _check_room(run, download, limit)
    for piece in download.pieces():
        if download.position != length or asdict(download.mark) != run.state.mark:
            _begin_again(run, download, fd)
            hashes.reset()
            _check_room(run, download, limit)
        before, length = length, download.position + len(piece)
        if length > limit:
            raise _too_big(run, limit)
        if length == len(piece):
            _refuse_page(run, piece)
        _write(fd, piece, download.position)
        hashes.update(piece)
        if before // STEP != length // STEP:
            db.probe("fetched a piece")
        run.env.progress("fetch", length, download.total or 0)
    if download.total not in (None, length):
        raise BackendError(f"{run.state.url} ended after {length} of {download.total} bytes")


def _begin_again(run: FetchRun, download: Download, fd: int) -> None:
    """The server's file is another now. First the old bytes go, then its mark is written down."""
    os.ftruncate(fd, 0)
    os.fsync(fd)
    run.state.mark = asdict(download.mark)
    with run.env.store.write() as tx:
        parts.change(tx, run.state.image_id, mark=run.state.mark)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _limit(run: FetchRun) -> int:
    """The most bytes that the file may have: a disk as large as the volume, with room for a format's tables."""
    limit = run.env.config.images["max_gigabytes"] * GiB
    size = run.state.volume_size
    return limit if size is None else min(limit, size + size // 10 + packed.METADATA)


def _check_room(run: FetchRun, download: Download, limit: int) -> None:
    """Before the body: what is announced must be allowed, and have room."""
    if download.total is None:
        return
    if download.total > limit:
        raise _too_big(run, limit)
    room = os.statvfs(run.env.places.images)
    if download.total - download.position > room.f_bavail * room.f_frsize:
        raise NoSpaceError(
            f"{run.state.url} has {format_size(download.total)}, which {run.env.places.images} has no room for",
            hint="free some space",
        )


def _too_big(run: FetchRun, limit: int) -> ImageTooBigError:
    return ImageTooBigError(
        f"{run.state.url} has more than {format_size(limit)} ({limit} bytes)",
        hint="ask for a larger volume" if run.state.volume_size is not None else "[images] max_gigabytes is the limit",
        details={"limit": limit},
    )


def _refuse_page(run: FetchRun, piece: bytes) -> None:
    if piece[:512].lstrip().lower().startswith(PAGES):
        raise ImageError(f"{run.state.url} is a web page, not an image", hint="look at it in a browser")


class VerifyDownloadTask(FetchTask):
    """The signature, and whether it is packed: before anything reads what is in it."""

    def gather(self, run: FetchRun) -> None:
        state, part = run.state, part_of(run.env, run.state.image_id)
        with open(part, "rb") as file:
            if state.signature:
                signatures.verify(file.fileno(), state.url, signatures.Signature(**state.signature))
            found = identify(file.fileno(), os.fstat(file.fileno()).st_size)
        state.packed = found.format if found.format in gate.PACKED else None


class UnpackTask(FetchTask):
    """What a packed file holds, beside it. Of any other there is nothing to do."""

    def plan(self, run: FetchRun) -> Json:
        return {"file": f"{run.state.image_id}.new"}

    def execute(self, run: FetchRun) -> None:
        state, part = run.state, part_of(run.env, run.state.image_id)
        if not state.packed:
            return
        with open(part, "rb") as source, store.opened(_unpacked(run), f"unpack {state.url}") as target:
            os.ftruncate(target, 0)
            how = run.env.unpacking(state.volume_size)
            packed.unpack_into(target, source.fileno(), state.url, state.packed, how)

    def revert(self, run: FetchRun) -> None:
        store.remove(_unpacked(run))


class CheckFetchedTask(FetchTask):
    """Through the gate."""

    def gather(self, run: FetchRun) -> None:
        state = run.state
        with gate.open_image(str(_whole(run)), declared=state.declared, name=state.url) as image:
            state.format, state.size, state.virtual_size = image.format, image.file_size, image.virtual_size


class KeepTask(FetchTask):
    """Its final name; the packed file goes."""

    def plan(self, run: FetchRun) -> Json:
        return {"file": run.state.image_id}

    def execute(self, run: FetchRun) -> None:
        state, target = run.state, stored(run.env, run.state.image_id)
        store.keep(_whole(run), target)
        store.remove(part_of(run.env, state.image_id))
        state.identity = store.identity(target)

    def revert(self, run: FetchRun) -> None:
        store.remove(stored(run.env, run.state.image_id))


class FetchedEntryTask(FetchTask):
    """The image's row in the place of the part's."""

    def record(self, tx: Connection, run: FetchRun) -> None:
        state = run.state
        parts.remove(tx, state.image_id)
        images.insert_row(tx, as_row(run.env, state))
        events.add(tx, "image.fetch", state.image_id, run.request, {"url": state.url, "size": state.size})


def as_row(env: Context, state: FetchState) -> Json:
    time = now()
    return {
        "id": state.image_id,
        "name": None,
        "location": str(stored(env, state.image_id)),
        "format": state.format,
        "size": state.size,
        "virtual_size": state.virtual_size,
        "sha256": state.sha256,
        "min_disk": 0,
        "properties": {},
        "status": "available",
        "created_at": time,
        "identity": state.identity,
        "owned": True,
        "origin": state.url,
        "mark": state.mark,
        "packed": state.packed,
        "used_at": time,
    }


FLOW = Flow(
    "image_fetch",
    FetchState,
    PartEntryTask(),
    DownloadTask(),
    VerifyDownloadTask(),
    UnpackTask(),
    CheckFetchedTask(),
    KeepTask(),
    FetchedEntryTask(),
)

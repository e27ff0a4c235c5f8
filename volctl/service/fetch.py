"""Images from URLs: fetched once, asked after each time, kept like what docker pulled, and dropped again."""

from __future__ import annotations

import hashlib
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from volctl.db import images, parts
from volctl.engine.locks import EXCLUSIVE, SHARED, LockSet
from volctl.errors import BackendError, NotFoundError
from volctl.flows.fetch import FetchState, boot
from volctl.flows.image import ImageDeleteState, part_of, stored
from volctl.flows.request import Ahead
from volctl.images import checksums, gate, peek, signatures, store
from volctl.images.fetch import Download, Mark, Policy
from volctl.model import GiB, Image, now
from volctl.records import record
from volctl.service.proof import Proof
from volctl.service.session import Session

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

PART_DAYS = 7  # after which what was fetched of a file, and never to its end, is dropped


@record
class Wanted:
    """A file by its URL; what is known of it; `size` of the volume it is for, in bytes, if one was asked for."""

    url: str
    proof: Proof
    image_format: str = "auto"
    size: int | None = None


@contextmanager
def image_of(session: Session, wanted: Wanted) -> Iterator[Image]:
    """The image at a URL, in our store and not to be dropped while the block lasts.

    Fetched if it is not there or has changed. One command fetches; the others wait for it as long as
    their --timeout allows. `BackendError` if the server cannot be reached, also where a copy is held.
    """
    with session.locks.acquire({lock_of(wanted.url): EXCLUSIVE}, math.inf) as locks:
        _drop_old_parts(session)
        image_id = _held(session, wanted) or _fetch(session, wanted, locks)
        using = session.locked({image_id: SHARED})
    with using:
        _trim(session)
        yield _image(session, image_id)


def renew(session: Session, image: Image) -> None:
    """Ask the server of a fetched image: what it has now takes the place of what is there, if that is another.

    Also if the file is not as it was fetched. Errors as of `image_of`; the image is then as before.
    """
    from volctl.flows.image_replace import ReplaceState

    assert image.origin is not None
    wanted = Wanted(image.origin, Proof())
    with session.locks.acquire({lock_of(wanted.url): EXCLUSIVE}, math.inf) as locks:
        found = _held(session, wanted) or _fetch(session, wanted, locks, keep=image.id)
        if found != image.id:
            with session.locked({image.id: EXCLUSIVE, found: EXCLUSIVE}) as both:
                state = ReplaceState(image.id, found)
                session.engine.start("image_replace", state, object_id=image.id, locks=both)


@record
class Known:
    """Of a URL, without fetching it: the image that is held, else what the first bytes of the file say."""

    image: Image | None = None
    ahead: Ahead | None = None


def ahead(session: Session, wanted: Wanted) -> Known:
    """For a dry run: asks the server, changes nothing."""
    with session.store.read() as tx:
        rows = images.fetched_from(tx, wanted.url)
    row = _good(session, rows, wanted.proof)
    download = _begin(session, wanted.url, row, None)
    if row is not None and download.unchanged:
        _check_proof(session, row, wanted)
        return Known(_image(session, row["id"]))
    head = bytearray()
    for piece in download.pieces():
        del head[download.position :]
        head += piece
        if len(head) >= peek.HEAD:
            break
    download.close()
    return Known(None, Ahead(peek.virtual_size(bytes(head), download.total), download.total or 0))


def lock_of(url: str) -> str:
    """The name of the lock under which this URL is fetched."""
    return f"url-{hashlib.sha256(url.encode()).hexdigest()[:32]}"


def policy(session: Session) -> Policy:
    config = session.env.config.images
    return Policy(config["fetch_attempts"], config["fetch_timeout"])


def _image(session: Session, image_id: str) -> Image:
    with session.store.read() as tx:
        found = images.find(tx, image_id)
    if found is None:
        raise NotFoundError(f"image {image_id} is gone")
    return found


def _held(session: Session, wanted: Wanted) -> str | None:
    """The id of a copy that is what the server has; None if it must be fetched, which was begun then."""
    with session.store.read() as tx:
        rows, part = images.fetched_from(tx, wanted.url), parts.of(tx, wanted.url)
    found = _good(session, rows, wanted.proof)
    if found is None or not session.began <= found["used_at"] <= now():  # else somebody asked while this one waited
        download = session.env.downloads[wanted.url] = _begin(session, wanted.url, found, part)
        if found is None or not download.unchanged:
            return None
    _check_proof(session, found, wanted)
    with session.store.write() as tx:
        images.change(tx, found["id"], used_at=now())
    return str(found["id"])


def _good(session: Session, rows: list[RowMapping], proof: Proof) -> RowMapping | None:
    """The first that is as it was fetched, and can be shown to be what is asked for."""
    return next((row for row in rows if _is_whole(session, row) and _provable(row, proof)), None)


def _is_whole(session: Session, row: RowMapping) -> bool:
    try:
        return bool(store.identity(stored(session.env, row["id"])) == row["identity"])
    except NotFoundError:
        return False


def _provable(row: RowMapping, proof: Proof) -> bool:
    """A signature, and a sha512, of a packed file need that file; only its sha256 is known."""
    needs_file = proof.signature or (proof.checksum and not proof.checksum.startswith("sha256:"))
    return not (row["packed"] and needs_file)


def _begin(session: Session, url: str, found: RowMapping | None, part: RowMapping | None) -> Download:
    have = 0
    if part is not None and part["boot"] == boot():
        path = part_of(session.env, part["id"])
        have = path.stat().st_size if path.exists() else 0
    held = Mark(**found["mark"]) if found else None
    known = Mark(**part["mark"]) if part is not None and have else None
    try:
        return Download.begin(url, policy(session), held=held, part=known, have=have)
    except BackendError as error:
        if found and error.hint is None:
            error.hint = f"a copy of {found['used_at']} is there: --from-image {found['name'] or found['id']} takes it"
        raise


def _check_proof(session: Session, found: RowMapping, wanted: Wanted) -> None:
    """What is asked of a copy that is held: it was fetched, perhaps, by a command that asked for nothing."""
    proof, path = wanted.proof, stored(session.env, found["id"])
    if wanted.image_format != "auto":
        with gate.open_image(str(path), declared=wanted.image_format, name=wanted.url):
            pass
    expected = checksums.parse(proof.checksum) if proof.checksum else None
    if expected and expected.algorithm == "sha256":
        checksums.compare(wanted.url, expected, found["sha256"])
    elif not (expected or proof.signature):
        return
    with open(path, "rb") as file:
        if expected and expected.algorithm != "sha256":
            checksums.verify(file.fileno(), wanted.url, os.fstat(file.fileno()).st_size, expected)
        if proof.signature:
            signatures.verify(file.fileno(), wanted.url, signatures.Signature(**proof.signature))


def _fetch(session: Session, wanted: Wanted, locks: LockSet, keep: str | None = None) -> str:
    """Run the flow; what it replaces goes, if nobody registered it. `keep` is the id of one that stays."""
    download = session.env.downloads[wanted.url]
    with session.store.read() as tx:
        rows, part = images.fetched_from(tx, wanted.url), parts.of(tx, wanted.url)
    if part and not download.position:  # of another version: no kill may leave its bytes with the mark of this one
        _delete(session, part["id"], locks)
        part = None
    image_id = part["id"] if part else str(uuid.uuid4())
    state = FetchState(
        image_id,
        wanted.url,
        asdict(download.mark),
        wanted.image_format,
        wanted.size,
        wanted.proof.checksum,
        wanted.proof.signature,
    )
    session.engine.start("image_fetch", state, object_id=image_id, locks=locks)
    for row in rows:
        if row["id"] != keep:
            _drop(session, row["id"])
    return image_id


def _drop(session: Session, image_id: str, origin: str | None = None) -> bool:
    """Delete an image, or what there is of the file at `origin`, unless somebody uses it or it is somebody's by now."""
    locks = session.locks.try_acquire({lock_of(origin) if origin else image_id: EXCLUSIVE})
    if locks is None:
        return False
    with locks:
        with session.store.read() as tx:
            there = parts.exists(tx, image_id) if origin else images.is_unclaimed(tx, image_id)
        if there:
            _delete(session, image_id, locks)
    return there


def _delete(session: Session, image_id: str, locks: LockSet) -> None:
    session.engine.start("image_delete", ImageDeleteState(image_id, True), object_id=image_id, locks=locks)


def _drop_old_parts(session: Session, days: float = PART_DAYS) -> int:
    before = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    with session.store.read() as tx:
        old = parts.older(tx, before)
    return sum(_drop(session, part["id"], part["origin"]) for part in old)


def _trim(session: Session) -> int:
    """Within the limits of `[image_cache]`, least recently used first: only what was fetched for a create."""
    limits = session.env.config.image_cache
    with session.store.read() as tx:
        rows = images.unclaimed(tx)
    count, size, dropped = len(rows), sum(row["size"] for row in rows), 0
    for row in rows:
        if count - dropped <= limits["max_count"] and size <= limits["max_gigabytes"] * GiB:
            break
        if _drop(session, row["id"]):
            dropped, size = dropped + 1, size - row["size"]
    return dropped


def prune(session: Session, *, all_: bool = False) -> int:
    """Drop what was fetched for a create and is of no use: above the limits, or never fetched to its end.

    With `all_` whatever nobody registered and nobody uses. How many files that were.
    """
    dropped = _drop_old_parts(session, days=0 if all_ else PART_DAYS)
    if not all_:
        return dropped + _trim(session)
    with session.store.read() as tx:
        rows = images.unclaimed(tx)
    return dropped + sum(_drop(session, row["id"]) for row in rows)

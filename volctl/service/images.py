"""Images: register, look, check, save, forget."""

from __future__ import annotations

import os
import uuid
from typing import Literal

from volctl.db import events, images, volumes
from volctl.engine.locks import EXCLUSIVE
from volctl.errors import ConflictError, UsageError
from volctl.flows import refs, words
from volctl.flows.image import ImageDeleteState, ImageState, check_free, check_volume
from volctl.flows.request import OF_FILES
from volctl.flows.save import SaveState
from volctl.images import http
from volctl.images.save import FORMATS
from volctl.model import Image, Json, Source, SourceKind, Status, check_name, parse_size, to_json
from volctl.service import fetch, image_cache, proof
from volctl.service.creation import source_lock
from volctl.service.session import Session


def add(
    session: Session,
    name: str | None,
    location: str,
    *,
    copy: bool = False,
    image_format: str = "auto",
    checksum: str | None = None,
    signature: str | None = None,
    keyring: str | None = None,
    min_disk: str | None = None,
    properties: tuple[str, ...] = (),
    allow_device: bool = False,
) -> Image:
    """Register a file in place, our copy of it, `volume:REF`, or what a URL holds. Sizes in bytes.

    `checksum`, `signature` and `keyring` as `proof.resolve` takes them.
    """
    image_id = str(uuid.uuid4())
    state = ImageState(
        image_id,
        None if name is None else words.usage(check_name, name),
        location,
        copy,
        0 if min_disk is None else words.usage(parse_size, min_disk),
        words.properties(properties),
    )
    if location.startswith(refs.VOLUME_SCHEME):
        if image_format != "auto" or allow_device or any((checksum, signature, keyring)):
            raise UsageError(f"{OF_FILES} are for files, and {location} is a volume")
        _volume_location(session, state)
    else:
        shown = proof.resolve(fetch.policy(session), location, checksum, signature, keyring)
        if http.is_url(location) and not os.path.lexists(location):
            return _add_fetched(session, state, fetch.Wanted(http.check_url(location), shown, image_format))
        state.location = words.path(words.absolute(location))
        opened: Json = {"path": state.location, "declared": image_format, "checksum": shown.checksum}
        state.opened = opened | {"allow_device": allow_device, "signature": shown.signature}
    return _added(session, state)


def _added(session: Session, state: ImageState) -> Image:
    image_id = state.image_id
    with session.locked({image_id: EXCLUSIVE}) as locks:
        session.engine.start("image_add", state, object_id=image_id, locks=locks)
    return show(session, image_id)


def _add_fetched(session: Session, state: ImageState, wanted: fetch.Wanted) -> Image:
    """What was fetched is registered; a copy of it, if it is already, and not as it is asked for."""
    with session.store.read() as tx:
        check_free(tx, state.name)
    with fetch.image_of(session, wanted) as found:
        if _registered(session, state, found):
            return show(session, found.id)
        state.location, state.copy = found.location, True
        state.opened = {"path": found.location, "declared": found.format, "checksum": None, "allow_device": False}
        return _added(session, state)


def _registered(session: Session, state: ImageState, found: Image) -> bool:
    """Make it somebody's; done already if no name is asked for, and nothing else than it has."""
    asked: Json = {"name": state.name, "min_disk": state.min_disk, "properties": state.properties}
    with session.rows() as tx:
        check_free(tx, state.name)
        if images.register(tx, found.id, **asked):
            events.add(tx, "image.add", found.id, str(uuid.uuid4()), {"location": found.location})
            return True
        present = refs.image(tx, found.id)
    same = (state.min_disk, state.properties) in ((0, {}), (present.min_disk, present.properties))
    return state.name is None and same


def _volume_location(session: Session, state: ImageState) -> None:
    if state.copy:
        raise UsageError("--copy goes with a file; an image that is a volume is cloned")
    with session.store.read() as tx:
        volume = refs.volume(tx, session.project, state.location.removeprefix(refs.VOLUME_SCHEME))
    check_volume(volume)
    state.location = f"{refs.VOLUME_SCHEME}{volume.id}"
    state.size = state.virtual_size = volume.size


def list_(session: Session) -> list[Image]:
    with session.store.read() as tx:
        return images.listing(tx)


def show(session: Session, ref: str) -> Image:
    with session.store.read() as tx:
        return refs.image(tx, ref)


def check(
    session: Session,
    path: str,
    *,
    image_format: str = "auto",
    checksum: str | None = None,
    signature: str | None = None,
    keyring: str | None = None,
) -> Json:
    """What the gate says of a file; sizes in bytes."""
    shown = proof.resolve(fetch.policy(session), path, checksum, signature, keyring)
    image = session.env.image(words.absolute(path), image_format, shown.checksum, False, shown.signature)
    return {
        "path": image.path,
        "format": image.format,
        "size": image.file_size,
        "virtual_size": image.virtual_size,
        "data_size": image.data_size,
        "sha256": image.sha256,
        "packed": image.packed,
    }


def refresh(session: Session, ref: str) -> Image:
    """Take a registered file as it is now, or what its URL holds now: through the gate again."""
    found = show(session, ref)
    if found.status == Status.ERROR_DELETING:
        raise ConflictError(f"image {found.label} is {found.status}", hint="volctl image delete finishes that")
    with session.store.read() as tx:
        before = images.internals(tx, found.id)["identity"]
    if found.origin is not None:
        fetch.renew(session, found)
    # What is read and what the row says of it belong together: another refresh may change both.
    with session.locked({found.id: EXCLUSIVE}):
        values = _present(session, found, before)
        with session.rows() as tx:
            images.change(tx, found.id, status=Status.AVAILABLE, **values)
            events.add(tx, "image.refresh", found.id, str(uuid.uuid4()), {"location": found.location})
    image_cache.forget(session, before)
    return show(session, found.id)


def _present(session: Session, found: Image, before: Json) -> Json:
    """What is at an image's location now, as its row says it; `before`: the file's identity as it was known."""
    if found.location.startswith(refs.VOLUME_SCHEME):
        with session.store.read() as tx:
            size = volumes.get(tx, found.location.removeprefix(refs.VOLUME_SCHEME)).size
        return {"size": size, "virtual_size": size}
    was_device = before.get("size") == 0
    image = session.env.image(found.location, "auto", None, was_device)
    values: Json = {"format": image.format, "size": image.file_size, "virtual_size": image.virtual_size}
    with session.store.read() as tx:
        known = images.internals(tx, found.id)["identity"]
    if image.identity != known:  # no longer what was unpacked or hashed
        values |= {"identity": image.identity, "sha256": image.sha256, "origin": None, "packed": None}
    return values


def save(
    session: Session, ref: str, target: str | int, *, format: str = "raw", compress: bool = False, replace: bool = False
) -> Json:
    """A volume or snapshot as an image: a file, or raw bytes to the descriptor `target`. Sizes in bytes.

    Nothing of that name may be there, unless it is to be `replace`d.
    """
    if format not in FORMATS:
        raise UsageError(f"{format!r} is not a format to save in", hint=f"formats: {', '.join(FORMATS)}")
    if compress and format != "qcow2":
        raise UsageError(f"--compress goes with --format qcow2; {format} is not compressed")
    with session.store.read() as tx:
        source = refs.content(tx, session.project, ref)
    assert source.id is not None and source.volume_id is not None
    kind: Literal["volume", "snap"] = "volume" if source.kind is SourceKind.VOLUME else "snap"
    state = SaveState(kind, source.id, source.volume_id, None, format=format, compress=compress, replace=replace)
    if isinstance(target, int):
        state.descriptor = _stream(target, format)
    else:
        state.file = _file(target)
    # A lock of its own, too: others may share the source's, and would take this flow for a dead one's.
    own = str(uuid.uuid4())
    with session.locked_as(lambda: {own: EXCLUSIVE} | source_lock(session.env, source)) as locks:
        state = session.engine.start("image_save", state, object_id=source.id, locks=locks)
    made: Json = {"path": state.file, "format": format, "size": state.made.get("size"), "virtual_size": state.length}
    return made | {"source": to_json(Source(source.kind, source.id, source.name))}


def _stream(descriptor: int, format: str) -> int:
    if format != "raw":
        raise UsageError(f"{format} cannot be written to a stream", hint="name a file, or save as raw")
    if os.isatty(descriptor):
        raise UsageError("a disk is not for a terminal", hint="name a file, or redirect standard output")
    return descriptor


def _file(target: str) -> str:
    if not target or target.endswith("/") or "\0" in target:
        raise UsageError(f"{target!r} is not the name of a file")
    return words.absolute(target)


def delete(session: Session, ref: str) -> None:
    """Forget an image; our own copy goes, a file in place stays."""
    found = show(session, ref)
    with session.locked({found.id: EXCLUSIVE}) as locks:
        with session.store.read() as tx:
            had = images.internals(tx, found.id)
        state = ImageDeleteState(found.id, had["owned"])
        session.engine.start("image_delete", state, object_id=found.id, locks=locks)
    image_cache.forget(session, had["identity"])

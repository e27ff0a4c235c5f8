"""From what the user wrote to the row that is meant: exact name, else id, else a unique prefix of an id."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from volctl.db import images, snapshots, volumes
from volctl.errors import AmbiguousError, NotFoundError, UsageError
from volctl.flows import words
from volctl.model import CreateRequest, Image, Snapshot, Source, SourceKind, Volume
from volctl.records import record

if TYPE_CHECKING:
    from sqlalchemy import Connection

SHORTEST_PREFIX = 6
VOLUME_SCHEME = "volume:"
_HEX = set("0123456789abcdef-")


class Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...


N = TypeVar("N", bound=Named)


def _resolve(what: str, ref: str, by_name: Callable[[str], N | None], by_prefix: Callable[[str], Sequence[N]]) -> N:
    if found := by_name(ref):
        return found
    prefix = ref.lower()
    if len(prefix) < SHORTEST_PREFIX or not set(prefix) <= _HEX:
        raise NotFoundError(f"there is no {what} {ref!r}")
    candidates = by_prefix(prefix)
    if len(candidates) > 1:
        raise AmbiguousError(f"{ref!r} is the beginning of {len(candidates)} {what} ids: {_names(candidates)}")
    if not candidates:
        raise NotFoundError(f"there is no {what} {ref!r}")
    return candidates[0]


def _names(candidates: Sequence[Named]) -> str:
    return ", ".join(f"{item.id} ({item.name})" if item.name else item.id for item in candidates)


def volume(tx: Connection, project: str, ref: str) -> Volume:
    """`NotFoundError`, or `AmbiguousError` with the candidates."""
    return _resolve(
        "volume", ref, lambda name: volumes.by_name(tx, project, name), lambda prefix: volumes.by_prefix(tx, prefix)
    )


def snapshot(tx: Connection, project: str, ref: str) -> Snapshot:
    return _resolve(
        "snapshot",
        ref,
        lambda name: snapshots.by_name(tx, project, name),
        lambda prefix: snapshots.by_prefix(tx, prefix),
    )


def image(tx: Connection, ref: str) -> Image:
    return _resolve("image", ref, lambda name: images.by_name(tx, name), lambda prefix: images.by_prefix(tx, prefix))


@record
class SourceRef:
    """What a volume is to be made from. `volume_id` is the volume to lock; `path` an image file.

    An image at a `url` has an id and a path once it is fetched.
    """

    kind: SourceKind
    id: str | None = None
    name: str | None = None
    volume_id: str | None = None
    path: str | None = None
    url: str | None = None


def source(tx: Connection, project: str, request: CreateRequest) -> SourceRef:
    """The one source of a request; `UsageError` if there are several."""
    given = [value for value in (request.from_image, request.from_snapshot, request.from_volume) if value is not None]
    if len(given) > 1:
        raise UsageError("choose one of --from-image, --from-snapshot and --from-volume")
    if request.from_snapshot is not None:
        return _snapshot_source(tx, project, request.from_snapshot)
    if request.from_volume is not None:
        return _volume_source(tx, project, request.from_volume)
    if request.from_image is not None:
        return _image_source(tx, project, request.from_image)
    return SourceRef(SourceKind.BLANK)


def content(tx: Connection, project: str, ref: str) -> SourceRef:
    """The volume or snapshot that `ref` means; `AmbiguousError` if it is the name of one and of the other."""
    found: list[SourceRef] = []
    for find in (_volume_source, _snapshot_source):
        with suppress(NotFoundError):
            found.append(find(tx, project, ref))
    if len(found) > 1:
        raise AmbiguousError(f"{ref!r} is a volume and a snapshot", hint=f"say {found[0].id} or {found[1].id}")
    if not found:
        raise NotFoundError(f"there is no volume and no snapshot {ref!r}")
    return found[0]


def names_source(request: CreateRequest, source: Source) -> bool:
    """Does the request name this source, which may be gone by now?"""
    texts = {
        SourceKind.IMAGE: request.from_image,
        SourceKind.SNAPSHOT: request.from_snapshot,
        SourceKind.VOLUME: request.from_volume,
    }
    text = texts.get(source.kind)
    return text is not None and (text in (source.id, source.name) or words.absolute(text) == source.name)


def _volume_source(tx: Connection, project: str, ref: str) -> SourceRef:
    found = volume(tx, project, ref)
    return SourceRef(SourceKind.VOLUME, found.id, found.name, found.id)


def _snapshot_source(tx: Connection, project: str, ref: str) -> SourceRef:
    found = snapshot(tx, project, ref)
    return SourceRef(SourceKind.SNAPSHOT, found.id, found.name, found.volume_id)


def _image_source(tx: Connection, project: str, text: str) -> SourceRef:
    """A registered image's name or id, else a path, else a URL, else `volume:REF`."""
    if not text:
        raise UsageError("--from-image needs the name of an image or a path")
    if found := _registered(tx, words.path(text)):
        if found.location.startswith(VOLUME_SCHEME):
            volume_id = found.location.removeprefix(VOLUME_SCHEME)
            return SourceRef(SourceKind.IMAGE, found.id, found.name, volume_id)
        return SourceRef(SourceKind.IMAGE, found.id, found.name, None, found.location)
    if _is_there(text):
        path = words.path(words.absolute(text))
        return SourceRef(SourceKind.IMAGE, None, path, None, path)
    from volctl.images import http

    if http.is_url(text):
        url = http.check_url(text)
        return SourceRef(SourceKind.IMAGE, None, url, url=url)
    if text.startswith(VOLUME_SCHEME):
        return _volume_source(tx, project, text.removeprefix(VOLUME_SCHEME))
    if len(candidates := _by_prefix(tx, text)) > 1:
        raise AmbiguousError(f"{text!r} is the beginning of several image ids: {_names(candidates)}")
    raise NotFoundError(f"there is no registered image and no file {text!r}")


def _is_there(path: str) -> bool:
    """Also what this user may not see: that is said when it is opened."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _registered(tx: Connection, text: str) -> Image | None:
    if found := images.by_name(tx, text):
        return found
    candidates = _by_prefix(tx, text)
    return candidates[0] if len(candidates) == 1 else None


def _by_prefix(tx: Connection, text: str) -> list[Image]:
    prefix = text.lower()
    return images.by_prefix(tx, prefix) if len(prefix) >= SHORTEST_PREFIX and set(prefix) <= _HEX else []

"""Validation of a create (SPEC, section 3): a request becomes a request spec, or is refused.

Reads rows and image headers, changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from volctl.db import images, snapshots, types, volumes
from volctl.db.quotas import Usage
from volctl.errors import (
    ChecksumError,
    ConfigError,
    ConflictError,
    ExistsError,
    ImageUnsafeError,
    NotFoundError,
    UsageError,
)
from volctl.flows import pools, refs, sizes
from volctl.flows.context import Context
from volctl.flows.create import CreateState
from volctl.flows.words import description, properties, usage
from volctl.images import content
from volctl.model import (
    MAX_SIZE,
    CreateRequest,
    Image,
    Json,
    MiB,
    Object,
    SourceKind,
    Status,
    Volume,
    check_name,
    format_size,
    parse_size,
    round_up,
)
from volctl.records import record
from volctl.scheduler import size_bounds

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from volctl.images.gate import CheckedImage

TYPE_PROPERTY = "volctl_type"
OF_FILES = "--checksum, --signature, --keyring, --image-format and --allow-device"
HINTS = ("same-backend", "different-backend")


@record
class Ahead:
    """What is known of an image before it is fetched: its disk's size, and what a copy may write, in bytes."""

    virtual_size: int | None = None
    physical: int = 0


def resolve(env: Context, state: CreateState, ahead: Ahead | None = None) -> None:
    """Fill the request spec, or raise what is wrong with the request.

    With `ahead`, of an image that is not fetched; its size stays 0 if nobody said one.
    """
    request = CreateRequest(**state.request)
    _own_words(env, state, request)
    pools.check(env)
    env.backends.expect_survey()
    with env.store.read() as tx:
        _check_name(tx, state)
        volume, wanted, least = _source(tx, state)
        state.hints = _hints(tx, state.project, request.hints)
    if volume is not None:
        _clone(env, state, request, volume, least)
    image_type, min_disk = _image(env, state, request) if ahead is None else _ahead(state, ahead)
    least = max(least, min_disk)
    with env.store.read() as tx:
        _type(tx, env, state, request.type if request.type is not None else wanted or image_type)
    if state.size or ahead is None:
        _size(state, request, least)
    _zone(env, state, request, volume.availability_zone if volume else None)


def _own_words(env: Context, state: CreateState, request: CreateRequest) -> None:
    """What needs nothing but the request itself."""
    state.name = None if request.name is None else usage(check_name, request.name)
    state.description = description(request.description)
    state.properties = properties(request.properties)
    state.max_attempts = request.max_attempts or env.config.max_attempts
    if request.max_attempts is not None and request.max_attempts < 1:
        raise UsageError("--max-attempts is at least 1")
    if request.backend is not None:
        env.backends.ask(request.backend)
    if request.size is not None:
        state.size = usage(parse_size, request.size)
    elif state.kind is SourceKind.BLANK:
        raise UsageError("a blank volume needs a size", hint="say --size, such as --size 10 for 10 GiB")
    proof = (request.checksum, request.signature, request.keyring)
    of_image = any(text is not None for text in proof) or request.image_format != "auto" or request.allow_device
    if of_image and request.from_image is None:
        raise UsageError(f"{OF_FILES} go with --from-image")
    if of_image and state.source["volume_id"] is not None:
        raise UsageError(f"{OF_FILES} are for files, and {request.from_image} is a volume")


def _check_name(tx: Connection, state: CreateState) -> None:
    if state.name is not None and (found := volumes.by_name(tx, state.project, state.name)):
        raise ExistsError(
            f"there is a volume {state.name!r} already ({found.id}, {found.status})",
            hint="choose another name, or say --if-absent",
            volume=found.id,
        )


def _hints(tx: Connection, project: str, given: tuple[str, ...]) -> dict[str, list[str]]:
    """`same-backend=REF` and `different-backend=REF` as names of backends."""
    found: dict[str, list[str]] = {hint: [] for hint in HINTS}
    for text in given:
        key, _, ref = text.partition("=")
        if key not in HINTS or not ref:
            raise UsageError(f"{text!r} is not a hint", hint="hints: same-backend=REF, different-backend=REF")
        volume = refs.volume(tx, project, ref)
        if volume.backend is None:
            raise ConflictError(f"volume {ref} has no backend yet", volume=volume.id)
        found[key].append(volume.backend)
    return found


def _source(tx: Connection, state: CreateState) -> tuple[Volume | None, str | None, int]:
    """The volume behind a source, the type that the source asks for, and the least size in bytes."""
    if (volume_id := state.source["volume_id"]) is None:
        return None, None, 0
    volume = volumes.get(tx, volume_id)
    if state.kind is SourceKind.SNAPSHOT:
        return volume, *_snapshot(tx, state)
    if volume.status not in (Status.AVAILABLE, Status.IN_USE):
        raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)
    state.bootable = volume.bootable
    state.properties = volume.properties | state.properties
    return volume, volume.type, volume.size


def _snapshot(tx: Connection, state: CreateState) -> tuple[str | None, int]:
    snapshot = snapshots.get(tx, state.source["id"])
    if snapshot.status is not Status.AVAILABLE:
        raise ConflictError(f"snapshot {snapshot.label} is {snapshot.status}, not available")
    origin = snapshots.origin(tx, snapshot.id)
    state.bootable = origin["bootable"]
    state.properties = origin["properties"] | state.properties
    return origin["type"], snapshot.size


def _clone(env: Context, state: CreateState, request: CreateRequest, volume: Volume, size: int) -> None:
    """Where the source is, that it holds still and has its `size`, and what a copy of it writes."""
    backend = env.backends.get(volume.backend)
    state.source_backend = volume.backend
    stays = request.backend in (None, volume.backend) and backend.capabilities.constant_time_clone
    snapshot = state.kind is SourceKind.SNAPSHOT
    if not snapshot:
        check_still(env, volume, stays=stays)
    source = Object("snap", state.source["id"]) if snapshot else Object("volume", volume.id)
    sizes.check(backend, source, size)
    found = None if stays else backend.inspect(source)
    state.physical = found.allocated if found else 0


def check_still(env: Context, volume: Volume, *, stays: bool) -> None:
    """`ConflictError` if somebody may write to the volume while it is copied.

    Where it `stays` it is cloned in no time, whoever writes; but who has shared layers open must be told
    of the clone, and only our own device can be.
    """
    backend = env.backends.get(volume.backend)
    if stays and (volume.status is Status.IN_USE or not backend.capabilities.shared_layers):
        return
    holders = backend.holders(Object("volume", volume.id))
    if volume.status is Status.IN_USE or holders:
        by = f" by {', '.join(holders)}" if holders else ""
        raise ConflictError(
            f"volume {volume.label} is in use{by}, and would be copied while it changes",
            hint="stop what uses it first",
            volume=volume.id,
        )


def _image(env: Context, state: CreateState, request: CreateRequest) -> tuple[str | None, int]:
    """Through the gate. The type that the image asks for, and its least disk in bytes."""
    if state.kind is not SourceKind.IMAGE:
        return None, 0
    registered = _registered(env, state)
    if registered is not None:
        state.properties = registered.properties | state.properties
    state.bootable = True
    wanted = state.properties.get(TYPE_PROPERTY) if registered and TYPE_PROPERTY in registered.properties else None
    min_disk = registered.min_disk if registered else 0
    if state.source["path"] is None:  # the image is a volume: it is cloned
        return wanted, min_disk
    declared = request.image_format
    if registered is not None and declared == "auto":
        declared = registered.format
    checksum = _as_registered(env, registered, request.checksum)
    state.image = {"path": state.source["path"], "declared": declared, "checksum": checksum}
    allow_device = request.allow_device or registered is not None  # asked for when it was registered
    state.image |= {"allow_device": allow_device, "signature": request.signed}
    image = env.image(**state.image, size=state.size or None, cached=request.signed is None)
    _check_unchanged(env, state, registered, image)
    state.content = _content(env, image, registered)
    _image_size(state, image, min_disk)
    return wanted, min_disk


def _ahead(state: CreateState, ahead: Ahead) -> tuple[str | None, int]:
    state.bootable, state.physical = True, ahead.physical
    if not state.size and ahead.virtual_size:
        state.size = round_up(ahead.virtual_size, MiB)
    if ahead.virtual_size:
        from volctl.images.gate import check_disk_fits

        check_disk_fits(state.source["url"], ahead.virtual_size, state.size)
    return None, 0


def _as_registered(env: Context, registered: Image | None, checksum: str | None) -> str | None:
    """What is left to be checked of the file: a checksum is of the packed one, where that is gone."""
    if registered is None or checksum is None:
        return checksum
    with env.store.read() as tx:
        packed = images.internals(tx, registered.id)["packed"]
    if not packed:
        return checksum
    from volctl.images import checksums

    expected = checksums.parse(checksum)
    if expected.algorithm != "sha256" or registered.sha256 is None:
        said = f"image {registered.label} is kept unpacked, and the {expected.algorithm} of the {packed} file unknown"
        raise ChecksumError(said, hint="add it again with --checksum")
    checksums.compare(registered.label, expected, registered.sha256)
    return None


def _registered(env: Context, state: CreateState) -> Image | None:
    if state.source["id"] is None:
        return None
    with env.store.read() as tx:
        found = images.find(tx, state.source["id"])
    if found is None:
        raise NotFoundError(f"image {state.source['id']} is gone")
    if found.status != Status.AVAILABLE:
        hint = f"volctl image refresh {found.label}" if found.status == Status.ERROR else None
        raise ConflictError(f"image {found.label} is {found.status}", hint=hint)
    return found


def _check_unchanged(env: Context, state: CreateState, registered: Image | None, image: CheckedImage) -> None:
    if registered is None:
        return
    with env.store.read() as tx:
        known = images.internals(tx, registered.id)
    same = content.is_same(known["identity"], image.identity, owned=known["owned"])
    if not same or registered.virtual_size != image.virtual_size:  # a device may have another medium
        raise ImageUnsafeError(
            f"the file of image {registered.label} has changed since it was registered",
            hint=f"look at it, then `volctl image refresh {registered.label}`",
        )


def _content(env: Context, image: CheckedImage, registered: Image | None) -> list[str]:
    """What the content is called in the image cache; nothing for a device, which may change unseen.

    The sha256 of an image that was registered packed is not that of the file which is kept.
    """
    if image.is_device:
        return []
    digest = image.sha256
    if digest is None and registered is not None:
        with env.store.read() as tx:
            digest = None if images.internals(tx, registered.id)["packed"] else registered.sha256
    return [*([content.of_digest(digest)] if digest else []), content.of_file(image.identity)]


def _image_size(state: CreateState, image: CheckedImage, min_disk: int) -> None:
    """The size from the image where none was asked for, and what the copy will write."""
    if not state.size:
        state.size = max(round_up(image.virtual_size, MiB), round_up(min_disk, MiB))
    from volctl.images.gate import check_fits

    check_fits(image, state.size)
    state.physical = image.data_size


def _size(state: CreateState, request: CreateRequest, least: int) -> None:
    if not state.size:
        state.size = round_up(least, MiB)
    if state.size < least:
        raise UsageError(
            f"{format_size(state.size)} ({state.size} bytes) is smaller than the source needs: "
            f"{format_size(least)} ({least} bytes)",
            details={"size": state.size, "least": least},
        )
    if state.size > MAX_SIZE:
        raise UsageError(f"the source has {state.size} bytes, more than a volume may have ({MAX_SIZE})")
    low, high = size_bounds(state.specs)
    if state.size < (low or 0) or state.size > (high or state.size):
        bounds = f"{format_size(low or 0)} to {format_size(high) if high else 'any'}"
        raise UsageError(f"type {state.type!r} takes volumes of {bounds}, not {format_size(state.size)}")


def _type(tx: Connection, env: Context, state: CreateState, name: str | None) -> None:
    default = name is None
    if default and (name := env.config.default_type) is None:
        return
    assert name is not None
    found = types.find(tx, name)
    if found is None and default:
        raise ConfigError(f"default_type {name!r} of the configuration does not exist", hint="volctl type create")
    if found is None:
        raise NotFoundError(f"there is no volume type {name!r}", hint="volctl type list shows them")
    state.type, state.specs = found.name, found.specs


def _zone(env: Context, state: CreateState, request: CreateRequest, source_zone: str | None) -> None:
    zones = sorted({backend.availability_zone for backend in env.backends.configs})
    zone = request.availability_zone
    if zone is not None and source_zone is not None and zone != source_zone:
        raise UsageError(f"the source is in availability zone {source_zone!r}; its copy cannot be in {zone!r}")
    if zone is None:
        zone = source_zone or env.config.default_availability_zone
    if zone is not None and zone not in zones:
        raise UsageError(f"there is no availability zone {zone!r}", hint=f"zones: {', '.join(zones)}")
    state.zone = zone


def wanted(request: CreateRequest, source: refs.SourceRef) -> Json:
    """What `--if-absent` compares: the size, type and source that were asked for."""
    size = None if request.size is None else usage(parse_size, request.size)
    return {"size": size, "type": request.type, "source": [source.kind, source.url or source.id or source.path]}


def as_row(state: CreateState) -> Json:
    """The row of a new volume."""
    request = CreateRequest(**state.request)
    source = refs.SourceRef(**state.source)
    return {
        "id": state.volume_id,
        "name": state.name,
        "project": state.project,
        "description": state.description,
        "size": state.size,
        "status": Status.CREATING,
        "type": state.type,
        "availability_zone": state.zone,
        "bootable": state.bootable,
        "properties": state.properties,
        "source_kind": state.kind,
        "source_id": source.id,
        "source_name": source.name,
        "requested": wanted(request, source),
    }


def check_quota(tx: Connection, env: Context, state: CreateState, count: int) -> None:
    """What the api flow would say of the quota for so many such volumes; reserves nothing."""
    quota = env.quota(state.project)
    quota.check_size(tx, state.size)
    quota.check(tx, Usage(volumes=count, gigabytes=count * state.size), state.type)

"""The words of volctl: volumes, snapshots, images, sizes, statuses. Imports nothing of ours.

All sizes are integers in bytes. All times are RFC 3339 strings in UTC. The fields of `Volume`,
`Snapshot`, `Image` and `Explanation` stand in the order in which JSON shows them; `to_json` is the
one way from here to plain values.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from volctl.records import record

KiB, MiB, GiB, MAX_SIZE = 1024, 1024**2, 1024**3, 8 * 1024**6 - 1

Json = dict[str, Any]


class Status(StrEnum):
    """Of a volume or a snapshot (SPEC, section 1)."""

    CREATING = "creating"
    DOWNLOADING = "downloading"
    AVAILABLE = "available"
    IN_USE = "in-use"
    EXTENDING = "extending"
    REVERTING = "reverting"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


class SourceKind(StrEnum):
    BLANK = "blank"
    IMAGE = "image"
    SNAPSHOT = "snapshot"
    VOLUME = "volume"


@record
class Fault:
    """Why an object is in status `error`: an error's code and its sentence."""

    code: str
    message: str


@record
class Source:
    """What a volume was filled from. `name` is the name at that time, null for a blank."""

    kind: SourceKind = SourceKind.BLANK
    id: str | None = None
    name: str | None = None


@record
class Attempt:
    """One backend that was tried for a volume and failed."""

    backend: str
    error: str


@record
class Attachment:
    device: str | None  # null: gone, by a reboot perhaps, until `attach --all` brings it back
    read_only: bool
    attached_at: str
    sector_size: int | None = None


class _Labelled:
    __slots__ = ()
    id: str
    name: str | None

    @property
    def label(self) -> str:
        """What a sentence calls it: the name, else the id."""
        return self.name or self.id


@record
class Volume(_Labelled):
    id: str
    name: str | None
    project: str
    description: str | None
    size: int
    status: Status
    fault: Fault | None
    type: str | None
    backend: str | None
    availability_zone: str | None
    bootable: bool
    protected: bool
    properties: dict[str, str]
    source: Source
    attachments: tuple[Attachment, ...]
    attempts: tuple[Attempt, ...]
    created_at: str
    available_at: str | None
    updated_at: str

    @property
    def attachment(self) -> Attachment | None:
        """The one that has a device, as the row has it."""
        return next((noted for noted in self.attachments if noted.device is not None), None)


@record
class Snapshot(_Labelled):
    id: str
    name: str | None
    project: str
    volume_id: str
    size: int
    status: Status
    fault: Fault | None
    properties: dict[str, str]
    created_at: str
    description: str | None = None


@record
class Image(_Labelled):
    """A registered image. `size` is the file's length, `virtual_size` the guest disk's, in bytes.

    `location` is an absolute path or `volume:ID`, `origin` the URL that it was fetched from. `sha256` is
    null until somebody asked for it; of what was packed it is the packed file's.
    """

    id: str
    name: str | None
    location: str
    format: str
    size: int | None
    virtual_size: int
    sha256: str | None
    min_disk: int
    properties: dict[str, str]
    status: str
    created_at: str
    origin: str | None = None


@record
class VolumeType:
    """A named set of extra specs that a backend must satisfy."""

    name: str
    specs: dict[str, str]
    description: str | None
    created_at: str


@record
class Verdict:
    """What the scheduler thought of one backend.

    `filter` and `reason` name the filter that refused it and its numbers; `weights` holds each
    weigher's normalised and multiplied part for a backend that passed, `total` their sum.
    """

    name: str
    passed: bool
    filter: str | None = None
    reason: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    total: float | None = None


@record
class Explanation:
    """The choice of a backend, explained filter by filter."""

    size: int
    type: str | None
    chosen: str | None
    backends: tuple[Verdict, ...]


@record
class VolumeDetails(Volume):
    """What `show` says: the volume and why it is where it is."""

    explanation: Explanation | None = None


@record
class CreateRequest:
    """A create as the user wrote it; `volctl.flows.request` makes sense of the texts.

    `size` as `parse_size` takes it, `hints` as `same-backend=REF`, `properties` as `KEY=VALUE`. Files and
    URLs that `checksum` and `signature` name are read by the service, into `checksum` and `signed`.
    """

    name: str | None = None
    size: str | None = None
    from_image: str | None = None
    from_snapshot: str | None = None
    from_volume: str | None = None
    image_format: str = "auto"
    checksum: str | None = None
    signature: str | None = None
    keyring: str | None = None
    signed: Json | None = None
    allow_device: bool = False
    type: str | None = None
    backend: str | None = None
    availability_zone: str | None = None
    hints: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    description: str | None = None
    if_absent: bool = False
    max_attempts: int | None = None


@record
class FlowRun:
    """One run of a list of tasks. `phase`: running, undoing, stuck, done, undone, abandoned."""

    id: str
    name: str
    request: str
    object: str | None
    phase: str
    cause: Fault | None
    started_at: str
    ended_at: str | None


@record
class TaskRun:
    """One line of the journal. `state`: begun, done, undone, failed."""

    name: str
    state: str
    started_at: str
    ended_at: str | None


@record
class FlowDetails(FlowRun):
    tasks: tuple[TaskRun, ...] = ()


@record
class Event:
    id: int
    time: str
    type: str
    object: str
    request: str
    payload: Json


@record
class QuotaLine:
    """A limit (-1: none) and its use; of gigabytes in bytes."""

    resource: str
    limit: int
    in_use: int
    reserved: int


@record
class BackendState:
    """A configured backend as it is now; sizes in bytes, null where unknown."""

    name: str
    kind: str
    availability_zone: str
    enabled: bool
    total: int | None
    free: int | None
    provisioned: int
    volumes: int
    capabilities: Json
    problems: tuple[str, ...]


@record
class BackendDetails(BackendState):
    options: Json = field(default_factory=dict)
    tools: tuple[Json, ...] = ()
    details: Json = field(default_factory=dict)
    image_cache: Json = field(default_factory=dict)


@record
class TreeNode:
    """A volume or snapshot and what was made from it."""

    kind: str
    id: str
    name: str | None
    size: int
    status: str
    children: tuple[TreeNode, ...]


@record
class Object:
    """A thing that a backend holds; its name on the backend is its kind and its id, never user text."""

    kind: Literal["volume", "snap", "image"]
    id: str
    about: Json | None = field(default=None, compare=False)  # what its row could be made of again (`db.about`)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.id}"


def to_json(value: Any) -> Any:
    """Dataclasses, tuples and enums as the plain values that JSON shows."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def now() -> str:
    """The time as RFC 3339 in UTC with microseconds, so that text order is time order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


_UNITS = (
    {"": GiB}
    | {u: 1024**n for n, u in enumerate("KMGTP", 1)}
    | {u + "iB": 1024**n for n, u in enumerate("KMGTP", 1)}
    | {u + "B": 1000**n for n, u in enumerate("kMGTP", 1)}
)
_SIZE = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))?([A-Za-z]{0,3})")


def parse_size(text: str) -> int:
    """Bytes of `10`, `10G`, `1.5TiB`, `500MB`; rounded up to MiB. ValueError says what is wrong.

    A bare whole number is GiB; K M G T P and KiB … PiB are powers of 1024, kB … PB of 1000.
    """
    if (rounded := round_up(exact_size(text), MiB)) <= MAX_SIZE:
        return rounded
    raise ValueError(f"{text!r} is above the largest size, 8 EiB - 1")


def exact_size(text: str) -> int:
    """As `parse_size`, but rounded up to a byte only: what the user said before any rounding."""
    if not (match := _SIZE.fullmatch(text)) or match[3] not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write 10 (GiB), 512M, 1.5T, 10GiB or 500MB")
    whole, fraction, unit = match.groups()
    if fraction and not unit:
        raise ValueError(f"{text!r} needs a unit: a bare size is a whole number of GiB")
    scale = 10 ** len(fraction or "")
    size: int = -(-int(whole + (fraction or "")) * _UNITS[unit] // scale)
    if size == 0:
        raise ValueError("a size of zero makes no volume")
    return size


def round_up(size: int, granule: int) -> int:
    """The smallest multiple of `granule` that is at least `size`."""
    return -(-size // granule) * granule


def format_size(size: int) -> str:
    """`10 GiB`, `1.5 MiB`, `700 bytes`: for people, exact where it can be."""
    for power, unit in zip(range(6, 0, -1), ("EiB", "PiB", "TiB", "GiB", "MiB", "KiB"), strict=True):
        if size >= 1024**power:
            return f"{size / 1024**power:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size} bytes"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}")


def check_name(name: str) -> str:
    """The name, if it is one; ValueError says the rule."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: 1 to 63 of A-Z a-z 0-9 . _ - and the first a letter or digit")
    if is_uuid(name):
        raise ValueError(f"{name!r} looks like an id; choose another name")
    return name


def is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None

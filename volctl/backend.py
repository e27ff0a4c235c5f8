"""What a backend is: one pool of storage, one class.

The contract of every method that touches storage:

- It may be called again after a crash at any instant: creating what is already there, half made or
  complete, and deleting what is not there are success. `create`, `clone` and `writing` begin anew
  whatever they find under the target's name (the caller holds the object's lock and has said in
  its journal that it is about to make it).
- "Not there" counts only after the pool itself was seen (`check`): a directory that is not mounted
  or a volume group that is missing raises `BackendError`.
- When it returns, bytes, directory entries and metadata are durable (synced).
- What it makes carries the target's `about`, where there is one: the row can be made again from it. Once
  its content is whole, where that costs nothing more (LVs carry it from the start). It stays with the
  object whatever is done to that, until `describe` changes it.
- It touches nothing but objects whose names it was given, and only in a pool that carries our mark
  (the uuid of our database).
- It raises only `VolctlError`: `NoSpaceError` when the pool is full, `AccessError` for rights,
  `MissingError` for a program or kernel feature, `BackendError` for the rest.
- It calls `interrupt.check()` at least every tenth of a second in work that may last.

A backend registers by being a subclass with a `kind`, which `volctl.kinds` imports on first use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from volctl.errors import BackendError, ConfigError, MissingError
from volctl.model import MiB, Object
from volctl.records import record

if TYPE_CHECKING:
    from volctl.adoption import Adoption

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) of a copy."""

NEARLY_FULL = 80.0  # percent of a pool's data or metadata; LVM's own monitoring warns there, too (lvmthin(7))


@record
class Capabilities:
    """What a backend is like, as data. `extra` is what the configuration adds for extra specs."""

    thin: bool = True
    """Space is taken when it is written, not when it is promised."""
    constant_time_clone: bool = False
    """Clones and snapshots share blocks; they take no time and no space."""
    path_without_attach: bool = False
    """`path` is a file that can be opened without `attach`."""
    clone_locks_source: bool = False
    """A clone changes the source's object, so the source is locked exclusively."""
    clones_need_source: bool = False
    """A clone of an image lies over it: the image cannot be deleted before its clones (`InUseError`)."""
    shared_layers: bool = False
    """Volumes made from one another share files, so they are locked together."""
    carried_when_whole: bool = False
    """What an object is about (`described`) is carried from when it is whole on, and no sooner."""
    block_device: bool = False
    """`path` is a block device."""
    granule: int = MiB
    """Sizes are multiples of this many bytes."""
    attach_needs_root: bool = True
    """Only root may call `attach` and `detach`."""
    sector_sizes: tuple[int, ...] = ()
    """What `attach` lets one choose from; empty: a device has the sectors of the disk below."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@record
class Stats:
    """The room in a pool, in bytes. None is unknown, `float("inf")` is infinite."""

    total: float | None
    free: float | None
    foreign: int = 0
    """Provisioned by others in the same pool."""
    data_percent: float | None = None
    metadata_percent: float | None = None


@record
class Info:
    """An object as the backend sees it: its size and the bytes it takes now."""

    size: int
    allocated: int


@record
class Attached:
    """An attached volume as the system has it: its device's path, and the logical sector in bytes."""

    device: str
    read_only: bool
    sector_size: int | None = None
    suspended: bool = field(default=False, compare=False)  # who reads or writes it waits


@record
class Listing:
    """A pool as one look at it saw it; what commands that live are making is among it."""

    objects: Mapping[Object, Info]
    """All that bears our mark. What has an object's name and cannot be one (a symlink) is foreign."""
    leftovers: Mapping[str, str] = field(default_factory=dict)
    """Names of what work makes beside a volume and takes away again, with the volume's id."""
    devices: Mapping[Object, Attached] = field(default_factory=dict)
    """Those that we made, also over what is gone; only what this user may see."""
    foreign: tuple[str, ...] = ()
    """Names of everything else."""
    links: Mapping[str, str | None] = field(default_factory=dict)
    """Of the files that make chains (`Chains`): what each lies over by its own word, None for nothing."""
    damaged: frozenset[str] = frozenset()
    """Of the same files, those that cannot be read: cut off, or marked as corrupt."""


@record
class Problem:
    """Something that a backend lacks. `fatal`: nothing new is put there."""

    message: str
    hint: str | None = None
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@record
class Target:
    """Where an image is written: an absolute path, its format, and whether it reads as zeros now.

    `size` is the disk's, in bytes, where the length of the file does not tell. `below` are the files
    that it lies over, which are read with it. `compress`: it is to be written compressed.
    """

    path: Path
    format: str
    zeroed: bool
    size: int | None = None
    below: tuple[Path, ...] = ()
    compress: bool = False


class Chains(Protocol):
    """Which file of a pool may lie over which, as rows: a file that was swapped would name what it likes.

    A file that is being changed may have two parents, the old and the new one. None is no parent, and
    the only one of a file of which nothing is noted. A note is durable when its call returns.
    """

    def parents(self, name: str) -> set[str | None]: ...

    def children(self, name: str) -> list[str]:
        """Those that may have `name` as a parent."""
        ...

    def note(self, name: str, parents: Collection[str | None]) -> None:
        """These, and no others; `{None}` forgets the file."""
        ...


@record
class Setup:
    """What a backend is made from: its name and options in the configuration, and our database.

    `builtin` is the pool that is there without a configuration; it initialises itself. `owner`: (uid, gid) for new
    files. `chains`: None where nothing is to be changed. `known`: has this object a row that says it is here?
    """

    name: str
    options: Mapping[str, Any]
    database: str
    builtin: bool = False
    owner: tuple[int, int] | None = None
    chains: Chains | None = None
    known: Callable[[Object], bool] = lambda target: False


class Backend(ABC):
    """One pool of storage. Subclasses say `kind` and check their options in `__init__`.

    Making one touches nothing and starts nothing; a wrong option is a `ConfigError`.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = False
    """It makes the very size that it was asked for or fails, and a look at what it made costs a program."""
    kinds: ClassVar[dict[str, type[Backend]]] = {}

    def __init_subclass__(cls) -> None:
        if kind := cls.__dict__.get("kind"):
            Backend.kinds[kind] = cls

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.name = setup.name

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """May look at the pool (can it reflink?), once; never fails."""

    @abstractmethod
    def pool(self) -> str:
        """What makes two backends the same pool, such as the directory's real path."""

    def free_space_key(self) -> str:
        """Backends with equal keys share one free figure (the device of a file system)."""
        return self.pool()

    def verify(self, made: Object, size: int) -> None:
        """`BackendError` unless what was made is there with that size in bytes, where that was not said already."""
        if self.exact:
            return
        found = self.inspect(made)
        if found is None or found.size != size:
            there = f"{found.size} bytes" if found else "nothing"
            raise BackendError(f"backend {self.name} made {there} instead of {size} bytes of {made.name}")

    def expect_survey(self) -> None:  # noqa: B027 - most are asked in no time
        """`check` and `stats` are asked for soon: what they wait for may begin now. Never fails."""

    def close(self) -> None:  # noqa: B027
        """The command ends; what `expect_survey` began, and nobody asked for, is ended."""

    @abstractmethod
    def check(self) -> list[Problem]:
        """What keeps this pool from being used, cheap (no child process where it can be helped)."""

    @abstractmethod
    def init(self, *, dry_run: bool = False) -> list[str]:
        """Prepare the pool once (marker, thin pool); sentences of what was, or would be, done.

        Again is success. `ConflictError` if the pool is another database's, or holds what is not `known`.
        """

    @abstractmethod
    def stats(self) -> Stats: ...

    @abstractmethod
    def create(self, target: Object, size: int) -> None:
        """A blank of `size` bytes that reads as zeros."""

    @abstractmethod
    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        """A copy of a volume or snapshot of this pool, from one point in time; the tail is zeros."""

    def clone_image(self, image: int, target: Object, size: int) -> bool:
        """Share blocks with the raw image open at descriptor `image`; False if that cannot be."""
        return False

    @abstractmethod
    def writing(self, target: Object, size: int) -> AbstractContextManager[Target]:
        """Make `target` and give the place to write its content to; durable when the block ends."""

    @abstractmethod
    def reading(self, source: Object) -> AbstractContextManager[Target]:
        """The place to read an object's content from, for a copy to elsewhere."""

    @abstractmethod
    def extend(self, volume: Object, size: int) -> None:
        """Grow to `size` bytes; the new tail reads as zeros."""

    @abstractmethod
    def snapshot(self, volume: Object, snapshot: Object) -> None: ...

    @abstractmethod
    def delete_snapshot(self, volume: Object, snapshot: Object) -> None: ...

    @abstractmethod
    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        """Make the volume read as the snapshot, then zeros up to `size`; the snapshot stays.

        An error that is `untouched` says that nothing was written: the volume is available again.
        """

    @abstractmethod
    def delete(self, volume: Object) -> None:
        """Delete everything the pool may hold for this volume, also half-made."""

    @abstractmethod
    def inspect(self, target: Object) -> Info | None:
        """None if it is not there."""

    @abstractmethod
    def path(self, volume: Object) -> Path:
        """The file, or the device path that `attach` would make usable."""

    @abstractmethod
    def holders(self, volume: Object) -> list[str]:
        """Who has the volume open, for a person to read: `qemu-system-x86 (pid 812)`, `/dev/loop3`.

        The device of `attach` counts: who asks knows from the row whether it is expected.
        """

    def attach(self, volume: Object, *, read_only: bool, sector_size: int | None = None) -> str:
        """Make the volume a block device that programs can open; the device's path.

        When it returns the node is there and has the volume's size, mode and sectors. A device that
        is ours already, in whatever mode a crash left it, is taken or replaced, never doubled. The
        caller holds the lock and has seen that nobody else holds the volume. A device is gone after
        a reboot, so nothing of it need be durable.

        LVM: `lvchange -ay -K` (`-K` for thin snapshots, which skip activation), with `-pr` before
        for `read_only` and `-prw` else, then wait for udev to have made the link. `path` is stable,
        so it is the device.
        """
        raise MissingError(f"backend {self.name} of kind {self.kind} has no devices to attach")

    def detach(self, volume: Object) -> None:  # noqa: B027 - what has no devices is not attached
        """Take our device away; it is gone when this returns. Not there is success.

        `InUseError` names who holds it (process, mount point, dm device) and leaves it as it was,
        also after those let go. Passing openers (udev's probes) are waited for. LVM: `lvchange -an`,
        and `-prw` for what was read-only.
        """

    def attached(self, volume: Object, device: str | None = None) -> Attached | None:
        """Our device of this volume, from the kernel's tables; None if there is none.

        Cheap (it is asked for each attached volume of a list): no child process, needs no rights,
        never fails. `device` is where it was last seen, and looked at first. LVM: the node exists
        (or `dm/uuid` in /sys/block), `ro` beside it.
        """
        return None

    def resize_device(self, volume: Object) -> None:  # noqa: B027
        """Let an attached device see that the volume was extended (`lvextend` does); not attached is success."""

    @abstractmethod
    def objects(self) -> list[Object]:
        """All objects with our mark in this pool."""

    def listing(self) -> Listing:
        """The whole pool at once, cheaper than to inspect each object (LVM: one report)."""
        seen = {target: self.inspect(target) for target in self.objects()}
        return Listing({target: info for target, info in seen.items() if info})

    def describe(self, target: Object) -> None:  # noqa: B027 - a backend may have no place for it
        """Let an object that is there carry `target.about`, instead of what it carried; durable."""

    def described(self) -> list[Object]:
        """All objects with our mark, each with the `about` that it carries; None without one."""
        return self.objects()

    def links(self, *names: str) -> Mapping[str, str | None]:
        """As in `Listing`, of those of these files that are there."""
        return {}

    def damaged(self, *names: str) -> frozenset[str]:
        """As in `Listing`, of those of these files that are there."""
        return frozenset()

    def learn(self, name: str) -> None:  # noqa: B027 - what makes no chains has nothing to note
        """Note what a file lies over by its own word (`Setup.chains`), if that is there and may be."""

    def restore(self) -> dict[Object, str]:
        """The same for all files. The objects that cannot be read, each with the reason: none keeps others back."""
        return {}

    def adopting(self) -> Adoption | None:
        """How it takes what is there under management, and lets go; None if it cannot."""
        return None

    def clear(self, leftover: str) -> None:  # noqa: B027 - what leaves nothing has nothing to clear
        """Remove a leftover, or a hidden file of `links` that one other at most lies over; not there is success.

        The caller holds the lock.
        """

    def claimed(self, *, empty: bool = False) -> str | None:
        """The uuid of the database whose mark the pool carries, if it holds objects or `empty`; never fails."""
        return None

    def tools(self) -> list[str]:
        """Programs this backend runs; `backend show` says which are there."""
        return []

    def details(self) -> dict[str, Any]:
        """What else `backend show` says of the pool, as plain values; it may take a program or two."""
        return {}


def check_options(setup: Setup, known: Collection[str]) -> None:
    """`ConfigError` for an option that a backend does not know, with the nearest that it does."""
    for option in setup.options:
        if option not in known:
            from difflib import get_close_matches

            near = get_close_matches(option, known, 1, 0.0)
            hint = f"did you mean {near[0]}?" if near else None
            raise ConfigError(f"backend {setup.name}: there is no option {option!r}", hint=hint)

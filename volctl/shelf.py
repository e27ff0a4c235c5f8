"""A pool that is a directory: what all backends of files do alike.

A subclass opens the directory by `_at`, whose first word is the call as an error tells it.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from volctl import files
from volctl.adoption import Adoption, Found
from volctl.backend import Attached, Backend, Info, Listing, Problem, Setup, Stats, check_options
from volctl.errors import AccessError, ConflictError, ExistsError, InUseError, NotFoundError, UsageError
from volctl.model import Object
from volctl.records import record

SECTOR = 512  # bytes


class Shelf(Backend):
    """Objects are files of their own name in one directory, which carries the marker."""

    work: tuple[str, ...] = ("revert-",)
    """Beginnings of names, before a volume's id, of files that work makes beside it."""
    format = "raw"
    """Of the files, as the gate of images calls it."""
    hidden: tuple[str, ...] = ()
    """Beginnings of names of other files of ours."""
    options: tuple[str, ...]
    """What the configuration may say, `directory`, `owner`, `group` and `mode` among it."""

    attribute = True
    """A file's own attributes may hold what it is about: it is no other object's file."""

    def __init__(self, setup: Setup, *, sync: bool = True) -> None:
        super().__init__(setup)
        check_options(setup, self.options)
        path = files.directory_option(setup.name, setup.options)
        self._directory = files.Directory(path, setup.database, setup.name, sync)
        self._ownership = files.Ownership.of(setup.options, setup.owner)

    @contextmanager
    def _at(self, call: str, *objects: Object) -> Iterator[files.Place]:
        with self._directory.opened(" ".join([call, *(target.name for target in objects)])) as place:
            yield place

    @contextmanager
    def opened(self, doing: str) -> Iterator[files.Place]:
        """The directory, for what is beside the calls of a backend."""
        with self._directory.opened(doing) as place:
            yield place

    def path_of(self, name: str) -> Path:
        return self._directory.path / name

    def size_of(self, fd: int, name: str) -> int:
        """Of the disk in an open file, in bytes. `UsageError` if it holds none of this backend's, `ImageCorruptError`
        if it says that it is damaged, `ConflictError` if it is not whole without others."""
        return os.fstat(fd).st_size

    def adopting(self) -> Adoption | None:
        return ShelfAdoption(self)

    def pool(self) -> str:
        return os.path.realpath(self._directory.path)

    def free_space_key(self) -> str:
        try:
            return f"dev:{os.stat(self._directory.path).st_dev}"
        except OSError:
            return self.pool()  # `check` tells what is wrong with it

    def stats(self) -> Stats:
        with self._directory.opened("look at the free space") as place:
            room = os.fstatvfs(place.fd)
        return Stats(total=room.f_blocks * room.f_frsize, free=room.f_bavail * room.f_frsize)

    def check(self) -> list[Problem]:
        trouble = self._directory.trouble()
        return [Problem(trouble.message, trouble.hint)] if trouble else []

    def init(self, *, dry_run: bool = False) -> list[str]:
        return self._directory.init(self._ownership, again=True, dry_run=dry_run, known=self.setup.known)

    def claimed(self, *, empty: bool = False) -> str | None:
        return self._directory.claimed(empty=empty)

    def inspect(self, target: Object) -> Info | None:
        with self._at("inspect", target) as place:
            found = place.stat(target.name)
        return _info(found) if found else None

    def path(self, volume: Object) -> Path:
        return self._directory.path / volume.name

    def objects(self) -> list[Object]:
        with self._at("objects") as place:
            return place.objects()

    def listing(self) -> Listing:
        with self._at("listing") as place:
            found = files.seen(place, self.work)
        infos = {target: _info(file) for target, file in found.objects.items()}
        return Listing(infos, found.leftovers, self._devices(), found.foreign)

    def _devices(self) -> dict[Object, Attached]:
        """The devices that this backend made and this user may see."""
        return {}

    def describe(self, target: Object) -> None:
        with self._at("describe", target) as place, place.existing(target.name) as fd:
            files.tell(place, fd, target, attribute=self.attribute)
            place.flush(fd)

    def described(self) -> list[Object]:
        with self._at("described") as place:
            return [replace(target, about=files.told(place, target)) for target in files.seen(place, self.work).objects]

    def clear(self, leftover: str) -> None:
        with self._at("clear") as place:
            place.remove(leftover)


def _info(file: os.stat_result) -> Info:
    return Info(file.st_size, file.st_blocks * 512)


@record
class ShelfAdoption(Adoption):
    """Files of the directory. Let go of halfway, a file may have both names for a moment."""

    shelf: Shelf

    @property
    def format(self) -> str:
        return self.shelf.format

    @contextmanager
    def _at(self, doing: str) -> Iterator[files.Place]:
        with self.shelf.opened(doing) as place:
            yield place

    def look(self, source: str) -> Found:
        directory, name = os.path.split(source)
        with self._at(f"look at {source}") as place:
            if directory and not _is(directory, place):
                hint = f"move it there first: mv {source} {place.path}/"
                raise UsageError(f"{source} is not in {place.path}, the directory of this backend", hint=hint)
            try:
                found = os.stat(name or ".", dir_fd=place.fd, follow_symlinks=False)
            except FileNotFoundError:
                raise _no_file(place, name) from None
            self._check(place, name, found)
            with place.existing(name) as fd:
                size, identity = self.shelf.size_of(fd, name), _identity(os.fstat(fd))
                if holders := files.holders(place.path / name, fd):
                    said = f"{name} is in use by {', '.join(holders)}"
                    raise InUseError(said, hint="stop what uses it first")
        if size == 0 or size % SECTOR:
            fill = f"truncate -s %{SECTOR} {place.path / name}" if size else None
            raise UsageError(f"{name} has {size} bytes, and a disk has sectors of {SECTOR}", hint=fill)
        return Found(name, self.path(name), size, self.path(name), identity)

    def _check(self, place: files.Place, name: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{name} in {place.path} is not a regular file")
        if found.st_nlink > 1:
            raise UsageError(f"{name} has {found.st_nlink} names: its bytes are somebody else's, too")
        if self._is_ours(name):
            raise UsageError(f"{name} is volctl's own")
        if not os.access(name, os.W_OK, dir_fd=place.fd, effective_ids=True):  # to rename it would be allowed
            said = f"user {os.geteuid()} may not write to {name} in {place.path}, and could not mark it"
            raise AccessError(said, hint=f"make it this user's first: chown {os.geteuid()} {place.path / name}")

    def _is_ours(self, name: str) -> bool:
        """Does a listing take it for what work leaves, or for part of something, whatever it is?"""
        return name.startswith((files.MARKER, *self.shelf.work, *self.shelf.hidden))

    def take(self, name: str, target: Object, identity: str | None = None) -> None:
        with self._at(f"adopt {name}") as place:
            if place.stat(target.name) is None:
                if not _is_it(place, name, identity):
                    said = f"{name} in {place.path} is another file than the one that was looked at"
                    raise ConflictError(said, hint="somebody replaced it; look at it, and say it again")
                place.replace(name, target.name)
            elif _same(place, name, target.name):
                place.remove(name)
        self.shelf.describe(target)

    def give(self, volume: Object, name: str, identity: str | None = None) -> None:
        with self._at(f"release {volume.name}") as place:
            if place.stat(volume.name) is not None:
                self._check_whole(place, volume)
                if not _same(place, volume.name, name):
                    if place.stat(name) is not None:
                        raise ExistsError(f"there is a file {name} in {place.path} already")
                    _name(place, volume.name, name)
            place.remove(volume.name)  # its second name, and what was kept beside it
            if not _is_it(place, name, identity):
                raise _no_file(place, name)
            with place.existing(name) as fd:
                files.forget(fd)
                place.flush(fd)

    def _check_whole(self, place: files.Place, volume: Object) -> None:
        try:
            with place.existing(volume.name) as fd:
                self.shelf.size_of(fd, volume.name)
        except ConflictError as error:
            error.untouched = True
            raise

    def free(self, wanted: str) -> str:
        first = f"released-{wanted}" if self._is_ours(wanted) or files.object_named(wanted) else wanted
        with self._at("look for a free name") as place:
            names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
            taken = {name for name, _ in place.entries()}
            return next(name for name in names if name not in taken)

    def path(self, name: str) -> str:
        return str(self.shelf.path_of(name))


def _is(directory: str, place: files.Place) -> bool:
    try:
        return os.path.samestat(os.stat(directory), os.fstat(place.fd))
    except OSError:
        return False


def _same(place: files.Place, name: str, other: str) -> bool:
    one, two = place.stat(name), place.stat(other)
    return one is not None and two is not None and os.path.samestat(one, two)


def _name(place: files.Place, name: str, other: str) -> None:
    """Give the file `name` the free name `other`: by a link, which replaces nothing, where one may be made.

    Not of somebody else's file (proc(5), protected_hardlinks), nor where the file system has none.
    """
    try:
        place.link(name, other)
    except PermissionError:
        place.replace(name, other)


def _identity(file: os.stat_result) -> str:
    """Among the files of one directory; the device's number may be another after a reboot."""
    return str(file.st_ino)


def _is_it(place: files.Place, name: str, identity: str | None) -> bool:
    """`NotFoundError` if nothing has this name."""
    if (found := place.stat(name)) is None:
        raise _no_file(place, name)
    return identity in (None, _identity(found))


def _no_file(place: files.Place, name: str) -> NotFoundError:
    return NotFoundError(f"there is no file {name} in {place.path}")

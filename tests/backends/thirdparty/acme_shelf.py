"""A backend of kind `shelf`, as somebody else would ship it: plain files, plain copies, nothing clever.

[[backend]]
name = "shelf"
kind = "shelf"
directory = "/srv/shelf"
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volctl.backend import Backend, Capabilities, Info, Problem, Progress, Setup, Stats, Target, check_options
from volctl.errors import BackendError
from volctl.files import Directory, Ownership, Place, copy, directory_option, grow, holders
from volctl.model import Object

OWNERSHIP = Ownership()


class Shelf(Backend):
    kind = "shelf"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        check_options(setup, ("directory", "capabilities"))
        self._directory = Directory(directory_option(setup.name, setup.options), setup.database, setup.name)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(path_without_attach=True, extra=self.setup.options.get("capabilities", {}))

    def pool(self) -> str:
        return os.path.realpath(self._directory.path)

    def check(self) -> list[Problem]:
        trouble = self._directory.trouble()
        return [Problem(trouble.message, trouble.hint)] if trouble else []

    def init(self, *, dry_run: bool = False) -> list[str]:
        return self._directory.init(OWNERSHIP, again=False, dry_run=dry_run, known=self.setup.known)

    def stats(self) -> Stats:
        with self._directory.opened("look at the room") as place:
            room = os.fstatvfs(place.fd)
        return Stats(room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)

    def create(self, target: Object, size: int) -> None:
        with self._directory.opened(f"create {target.name}") as place, place.fresh(target.name, OWNERSHIP) as fd:
            grow(fd, size, preallocate=False)

    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        with self._directory.opened(f"clone {source.name}") as place:
            _copy(place, source.name, target.name, size, progress)

    @contextmanager
    def writing(self, target: Object, size: int) -> Iterator[Target]:
        self.create(target, size)
        yield Target(self.path(target), "raw", zeroed=True)
        with self._directory.opened(f"write {target.name}") as place, place.existing(target.name, os.O_RDWR) as fd:
            os.ftruncate(fd, size)

    @contextmanager
    def reading(self, source: Object) -> Iterator[Target]:
        with self._directory.opened(f"read {source.name}") as place, place.existing(source.name):
            pass
        yield Target(self.path(source), "raw", zeroed=False)

    def extend(self, volume: Object, size: int) -> None:
        with self._directory.opened(f"extend {volume.name}") as place, place.existing(volume.name, os.O_RDWR) as fd:
            grow(fd, size, preallocate=False)

    def snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._directory.opened(f"snapshot {volume.name}") as place:
            _copy(place, volume.name, snapshot.name, 0)

    def delete_snapshot(self, volume: Object, snapshot: Object) -> None:
        self.delete(snapshot)

    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        with self._directory.opened(f"revert {volume.name}") as place:
            _copy(place, snapshot.name, _temporary(volume), size)
            place.replace(_temporary(volume), volume.name)

    def delete(self, volume: Object) -> None:
        with self._directory.opened(f"delete {volume.name}") as place:
            place.remove(volume.name, _temporary(volume))

    def inspect(self, target: Object) -> Info | None:
        with self._directory.opened(f"look at {target.name}") as place:
            found = place.stat(target.name)
        return Info(found.st_size, found.st_blocks * 512) if found else None

    def path(self, volume: Object) -> Path:
        return self._directory.path / volume.name

    def holders(self, volume: Object) -> list[str]:
        with self._directory.opened(f"look at {volume.name}") as place:
            if not place.stat(volume.name):
                return []
            with place.existing(volume.name) as fd:
                return holders(self.path(volume), fd)

    def objects(self) -> list[Object]:
        with self._directory.opened("list") as place:
            return place.objects()


def _copy(place: Place, source: str, target: str, size: int, progress: Progress = lambda done, total: None) -> None:
    """Copy; `size` 0 is the source's own."""
    with place.existing(source) as original:
        length = os.fstat(original).st_size
        if 0 < size < length:
            raise BackendError(f"{source} has {length} bytes, more than {size}")
        with place.fresh(target, OWNERSHIP) as fd:
            copy(original, fd, progress)
            grow(fd, size or length, preallocate=False)
    progress(length, length)


def _temporary(volume: Object) -> str:
    return f"revert-{volume.id}"

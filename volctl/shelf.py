"""A pool that is a directory: what all backends of files do alike.

A subclass opens the directory by `_at`, whose first word is the call as an error tells it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from volctl import files
from volctl.backend import Attached, Backend, Info, Listing, Problem, Setup, check_options
from volctl.model import Object


class Shelf(Backend):
    """Objects are files of their own name in one directory, which carries the marker."""

    work: tuple[str, ...] = ("revert-",)
    """Beginnings of names, before a volume's id, of files that work makes beside it."""
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

    def pool(self) -> str:
        return os.path.realpath(self._directory.path)

    def check(self) -> list[Problem]:
        trouble = self._directory.trouble()
        return [Problem(trouble.message, trouble.hint)] if trouble else []

    def init(self, *, dry_run: bool = False) -> list[str]:
        return self._directory.init(self._ownership, again=self.setup.builtin, dry_run=dry_run)

    def claimed(self) -> str | None:
        return self._directory.claimed()

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
            return [replace(target, about=files.told(place, target)) for target in place.objects()]

    def clear(self, leftover: str) -> None:
        with self._at("clear") as place:
            place.remove(leftover)


def _info(file: os.stat_result) -> Info:
    return Info(file.st_size, file.st_blocks * 512)

"""A real backend to test with: small sparse files, failures on order, and a log of calls.

    [[backend]]
    name = "test"
    kind = "fake"
    directory = "/tmp/pool"       # absolute; `volctl backend init test` puts the marker there
    capacity = 1099511627776      # bytes; what does not fit is refused as NoSpaceError
    provisioning = "thin"         # "thick": a volume's whole size is taken from the capacity
    clone = "copy"                # "share": says that it clones in constant time
    clone_locks_source = false
    granule = 1048576
    sync = false                  # true: fsync, as a backend must; off, only a power cut tells
    fail = ["create"]             # these calls always fail

Files in the directory, so that a test can change them while other processes run:

- `fail`: {"create": "the message", "clone": {"error": "no_space", "message": "…", "skip": 1, "times": 2,
  "after": true, "pause": 0.5, "wait": "/a/file", "untouched": true}}; all parts optional; `error` is a code of
  volctl.errors (default `backend`), `skip` lets so many calls pass, `after` fails when the work is done, `pause`
  waits first so many seconds, `wait` until that file is there; but for those and `times` alone, it only waits.
- `stats`: {"free": 0, "data_percent": 96.5} replaces parts of `Stats`; null is unknown, Infinity is.
- `device-<id>`, `device-ro-<id>`: the device of an attached volume, a link to its file; a reboot unlinks it.
- `calls`: one line of JSON for every call: {"call": "clone", "objects": ["volume-…", "volume-…"]}.

Host tools: none.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from volctl import errors, files, interrupt
from volctl.backend import (
    Attached,
    Capabilities,
    Listing,
    Progress,
    Setup,
    Stats,
    Target,
)
from volctl.model import GiB, MiB, Object
from volctl.shelf import Shelf

_FILES = ("directory", "owner", "group", "mode", "sync")


class Fake(Shelf):
    kind = "fake"
    hidden = ("calls", "fail", "stats", "device-")
    options = (*_FILES, "capacity", "provisioning", "clone", "clone_locks_source", "granule", "fail", "capabilities")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, sync=bool(setup.options.get("sync", False)))
        self._capacity = int(setup.options.get("capacity", 1024 * GiB))
        self._thick = setup.options.get("provisioning", "thin") == "thick"

    @cached_property
    def capabilities(self) -> Capabilities:
        options = self.setup.options
        return Capabilities(
            thin=not self._thick,
            constant_time_clone=options.get("clone", "copy") == "share",
            path_without_attach=True,
            carried_when_whole=True,
            clone_locks_source=bool(options.get("clone_locks_source", False)),
            granule=int(options.get("granule", MiB)),
            attach_needs_root=False,
            extra=options.get("capabilities", {}),
        )

    @contextmanager
    def _at(self, call: str, *objects: Object) -> Iterator[files.Place]:
        """Log a call, fail it if so ordered, and give the place where to do it."""
        with super()._at(call, *objects) as place:
            line = json.dumps({"call": call, "objects": [target.name for target in objects]}) + "\n"
            with files.os_open("calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, place.fd) as fd:
                os.write(fd, line.encode())
            order = self._order(call, place)
            if not order.get("after"):
                _obey(order, call)
            yield place
            if order.get("after"):
                _obey(order, call)

    def _order(self, call: str, place: files.Place) -> dict[str, Any]:
        """What the test wants of this call, counted down under a lock; empty for nothing."""
        if call in self.setup.options.get("fail", ()):
            return {"error": "backend"}
        try:
            with files.os_open("fail", os.O_RDWR | os.O_CLOEXEC, place.fd) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX)
                return _count_down(fd, call)
        except FileNotFoundError:
            return {}

    def free_space_key(self) -> str:
        return self.pool()  # its room is its own

    def stats(self) -> Stats:
        with self._at("stats") as place:
            free = max(0, self._capacity - self._used(place))
            try:
                with files.os_open("stats", os.O_RDONLY | os.O_CLOEXEC, place.fd) as fd:
                    changes = json.loads(os.read(fd, MiB))
            except FileNotFoundError:
                changes = {}
        return replace(Stats(total=self._capacity, free=free), **changes)

    def _used(self, place: files.Place) -> int:
        found = filter(None, (place.stat(target.name) for target in place.objects()))
        return sum(stat.st_size if self._thick else stat.st_blocks * 512 for stat in found)

    def _need(self, place: files.Place, thick: int, thin: int) -> None:
        """Refuse what does not fit into the capacity: bytes promised, or written at once."""
        need = thick if self._thick else thin
        if need and self._used(place) + need > self._capacity:
            raise errors.NoSpaceError(f"{place.path} has no room for {need} bytes of {self._capacity}")

    def create(self, target: Object, size: int) -> None:
        with self._at("create", target) as place:
            self._blank(place, target, size)

    def _blank(self, place: files.Place, target: Object, size: int) -> None:
        place.remove(target.name)
        self._need(place, size, 0)
        with place.fresh(target.name, self._ownership) as fd:
            files.grow(fd, size, preallocate=False)
            files.tell(place, fd, target)

    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        with self._at("clone", source, target) as place:
            place.remove(target.name)
            self._copy(place, source.name, target, size, progress)

    def _copy(
        self, place: files.Place, source: str, target: Object, size: int, progress: Progress, name: str | None = None
    ) -> None:
        with place.existing(source) as original:
            had = os.fstat(original)
            if size < had.st_size:
                raise errors.BackendError(f"{source} has {had.st_size} bytes, more than the {size} asked for")
            self._need(place, size, had.st_blocks * 512)
            with place.fresh(name or target.name, self._ownership) as fd:
                files.copy(original, fd, progress)
                files.grow(fd, size, preallocate=False)
                files.tell(place, fd, target)
        progress(had.st_size, had.st_size)

    @contextmanager
    def writing(self, target: Object, size: int) -> Iterator[Target]:
        with self._at("writing", target) as place:
            self._blank(place, Object(target.kind, target.id), size)
        yield Target(self.path(target), "raw", zeroed=True)
        with self._at("written", target) as place, place.existing(target.name, os.O_RDWR) as fd:
            os.ftruncate(fd, size)
            files.tell(place, fd, target)

    @contextmanager
    def reading(self, source: Object) -> Iterator[Target]:
        with self._at("reading", source) as place, place.existing(source.name):
            pass
        yield Target(self.path(source), "raw", zeroed=False)

    def extend(self, volume: Object, size: int) -> None:
        with self._at("extend", volume) as place, place.existing(volume.name, os.O_RDWR) as fd:
            self._need(place, size - os.fstat(fd).st_size, 0)
            files.grow(fd, size, preallocate=False)

    def snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._at("snapshot", volume, snapshot) as place:
            place.remove(snapshot.name)
            found = place.stat(volume.name)
            self._copy(place, volume.name, snapshot, found.st_size if found else 0, lambda done, total: None)

    def delete_snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._at("delete_snapshot", volume, snapshot) as place:
            place.remove(snapshot.name, _reverting(volume))

    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        with self._at("revert", volume, snapshot) as place, place.existing(volume.name) as old:
            new, bare = _reverting(volume), Object("volume", volume.id)
            place.remove(new)
            self._copy(place, snapshot.name, bare, size, lambda done, total: None, name=new)
            with place.existing(new, os.O_RDWR) as fd:
                files.carry(old, fd)
            place.replace(new, volume.name)

    def delete(self, volume: Object) -> None:
        with self._at("delete", volume) as place:
            place.remove(volume.name, _reverting(volume))

    def holders(self, volume: Object) -> list[str]:
        with self._at("holders", volume) as place:
            if not place.stat(volume.name):
                return []
            with place.existing(volume.name) as fd:
                return files.holders(self.path(volume), fd)

    def attach(self, volume: Object, *, read_only: bool, sector_size: int | None = None) -> str:
        with self._at("attach", volume) as place, place.existing(volume.name):
            place.remove(_device(volume, not read_only))
            if not os.path.lexists(place.path / _device(volume, read_only)):
                os.symlink(volume.name, _device(volume, read_only), dir_fd=place.fd)
        return str(place.path / _device(volume, read_only))

    def detach(self, volume: Object) -> None:
        with self._at("detach", volume) as place:
            if place.stat(volume.name):
                with place.existing(volume.name) as fd:
                    if users := files.holders(self.path(volume), fd):
                        raise errors.InUseError(f"{volume.name} is in use by {', '.join(users)}")
            place.remove(_device(volume, False), _device(volume, True))

    def attached(self, volume: Object, device: str | None = None) -> Attached | None:
        return self._devices().get(volume)

    def listing(self) -> Listing:
        found = super().listing()
        links = {os.path.basename(device.device) for device in found.devices.values()}
        return replace(found, foreign=tuple(sorted({*found.foreign} - links - _OF_TESTS)))

    def _devices(self) -> dict[Object, Attached]:
        links = filter(None, map(_DEVICE.fullmatch, os.listdir(self._directory.path)))
        return {
            Object("volume", link[2]): Attached(str(self._directory.path / link[0]), bool(link[1])) for link in links
        }


_DEVICE = re.compile(r"device-(ro-)?([0-9a-f-]{36})")
_OF_TESTS = {"calls", "fail", "stats"}


def _device(volume: Object, read_only: bool) -> str:
    return f"device-{'ro-' if read_only else ''}{volume.id}"


def _reverting(volume: Object) -> str:
    return f"revert-{volume.id}"


def _count_down(fd: int, call: str) -> dict[str, Any]:
    orders = json.loads(os.read(fd, MiB) or b"{}")
    order = orders.get(call, {})
    if not isinstance(order, dict):
        return {"message": order}
    skipped = order.get("skip", 0) > 0
    if (counter := "skip" if skipped else "times") in order:
        if order[counter] <= 0:
            return {}
        orders[call] = order | {counter: order[counter] - 1}
        text = json.dumps(orders).encode()
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))
    return {} if skipped else order


def _obey(order: dict[str, Any], call: str) -> None:
    interrupt.pause(order.get("pause", 0))
    while "wait" in order and not os.path.exists(order["wait"]):
        interrupt.pause(0.01)
    waits = order.keys() & {"pause", "wait"}
    if order and not (waits and order.keys() <= {"skip", "times", "after", *waits}):
        code = order.get("error", "backend")
        error = _errors(errors.VolctlError)[code](order.get("message", f"{call} was ordered to fail"))
        error.untouched = order.get("untouched", False)
        raise error


def _errors(base: type[errors.VolctlError]) -> dict[str, type[errors.VolctlError]]:
    """All error classes by their code; the one that names a code first is its own."""
    known = {base.code: base}
    for child in base.__subclasses__():
        known = _errors(child) | known
    return known

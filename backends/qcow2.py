"""Volumes as qcow2 files in a directory.

    [[backend]]
    name = "disks"
    kind = "qcow2"
    directory = "/srv/disks"       # absolute; `volctl backend init disks` puts the marker there
    cluster_size = "64K"
    extended_l2 = false            # subclusters: less is copied by a small write over a snapshot
    lazy_refcounts = false
    preallocation = "off"          # "metadata": of blank volumes
    owner = "libvirt-qemu"         # of new files; also group, and mode = "0600"

Host tools: qemu-img (qemu-utils). Clones and snapshots take no time and share what they have in
common: the file of a volume lies over a layer or an image base (`volctl.qcow2`), by a name relative to
the directory, with its format. To open a file is to open all that it lies over, so each chain is
compared with its rows before. Deleting a snapshot merges its layer where only one file lies over it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from volctl import files
from volctl.backend import Capabilities, Info, Listing, Progress, Setup, Stats, Target
from volctl.errors import BackendError, InternalError, InUseError
from volctl.model import Object
from volctl.qcow2 import tool
from volctl.qcow2.header import read
from volctl.qcow2.layers import Layers, base_of, is_layer, layer, owner
from volctl.qcow2.settings import OPTIONS, layout
from volctl.shelf import Shelf


class Qcow2(Shelf):
    kind = "qcow2"
    options = (*OPTIONS, "directory", "owner", "group", "mode", "capabilities")
    work = ("new-volume-", "new-image-", "new-layer-")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._layout = layout(setup)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            constant_time_clone=True,
            clone_locks_source=True,
            clones_need_source=True,
            shared_layers=True,
            extra=self.setup.options.get("capabilities", {}),
        )

    def free_space_key(self) -> str:
        try:
            return f"dev:{os.stat(self._directory.path).st_dev}"
        except OSError:
            return self.pool()  # `check` tells what is wrong with it

    def tools(self) -> list[str]:
        return ["qemu-img"]

    def stats(self) -> Stats:
        with self._directory.opened("look at the free space") as place:
            room = os.fstatvfs(place.fd)
        return Stats(total=room.f_blocks * room.f_frsize, free=room.f_bavail * room.f_frsize)

    @contextmanager
    def _opened(self, doing: str) -> Iterator[Layers]:
        """The pool, to work on its files and their rows."""
        if self.setup.chains is None:
            raise InternalError(f"backend {self.name} was opened without its rows")
        with self._directory.opened(doing) as place:
            yield Layers(place, self.setup.chains, self._layout.every)

    def create(self, target: Object, size: int) -> None:
        with self._opened(f"create {target.name}") as layers:
            layers.put(target.name, None, size, self._ownership, self._layout.blank)

    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        with self._opened(f"clone {source.name} to {target.name}") as layers:
            length = layers.verified(source.name).size
            if size < length:
                raise BackendError(f"the source has {length} bytes, more than the {size} asked for")
            layers.collect(layer(target))
            below: str | None = base_of(source)
            if source.kind == "volume":
                self._refuse_held(layers, source)
                below = layers.base_for(source, target)
            layers.put(target.name, below, size, self._ownership)
        progress(length, length)

    def _refuse_held(self, layers: Layers, volume: Object) -> None:
        if holders := self._holders(layers, volume):
            raise InUseError(
                f"{volume.name} is in use by {', '.join(holders)}",
                hint="stop what uses it first: nobody else can say at which instant its bytes belong together",
            )

    @contextmanager
    def writing(self, target: Object, size: int) -> Iterator[Target]:
        self.create(target, size)
        yield Target(self.path(target), "qcow2", zeroed=True, size=size)
        with self._opened(f"write {target.name}") as layers:
            with layers.place.existing(target.name, os.O_RDWR):
                pass  # synced when this ends
            if (found := layers.verified(target.name)).size != size or found.backing:
                raise BackendError(f"{target.name} has {found.size} bytes instead of {size}")

    @contextmanager
    def reading(self, source: Object) -> Iterator[Target]:
        with self._opened(f"read {source.name}") as layers:
            size = layers.header(source.name).size
            below = layers.paths_below(source.name)
        yield Target(self.path(source), "qcow2", zeroed=False, size=size, below=below)

    def extend(self, volume: Object, size: int) -> None:
        with self._opened(f"extend {volume.name}") as layers:
            length = layers.verified(volume.name).size
            if size < length:
                raise BackendError(f"{volume.name} has {length} bytes and cannot shrink to {size}")
            if size > length:
                tool.resize(self.path(volume), layers.paths_below(volume.name), size)
            with layers.place.existing(volume.name, os.O_RDWR):
                pass  # synced when this ends

    def snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._opened(f"snapshot {volume.name} as {snapshot.name}") as layers:
            self._drop(layers, snapshot)
            self._refuse_held(layers, volume)
            layers.freeze(volume.name, layer(snapshot))
            layers.place.link(layer(snapshot), snapshot.name)

    def delete_snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._opened(f"delete {snapshot.name}") as layers:
            self._drop(layers, snapshot)

    def _drop(self, layers: Layers, snapshot: Object) -> None:
        """Take away the snapshot's name, and its layer if that is not needed."""
        layers.place.remove(snapshot.name)
        layers.collect(layer(snapshot))

    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        """The volume's file is replaced by another inode, in one step, with the owner and mode it had."""
        with self._opened(f"revert {volume.name} to {snapshot.name}") as layers:
            layers.verified(snapshot.name)
            with layers.place.existing(volume.name) as old:
                ownership = owner(old)
            layers.put(volume.name, layer(snapshot), size, ownership)

    def delete(self, volume: Object) -> None:
        with self._opened(f"delete {volume.name}") as layers:
            if volume.kind == "snap":
                self._drop(layers, volume)
                return
            layers.remove(volume.name)
            layers.collect(layer(volume))

    def inspect(self, target: Object) -> Info | None:
        with self._at("inspect", target) as place:
            return _info(place, target) if place.stat(target.name) else None

    def listing(self) -> Listing:
        """Layers are neither objects nor foreign: they are part of what lies over them."""
        found = super().listing()
        with self._at("listing") as place:
            infos = {target: _info(place, target) for target in found.objects if place.stat(target.name)}
        foreign = tuple(name for name in found.foreign if not is_layer(name))
        return replace(found, objects=infos, foreign=foreign)

    def holders(self, volume: Object) -> list[str]:
        with self._opened(f"look at who holds {volume.name}") as layers:
            return self._holders(layers, volume)

    def _holders(self, layers: Layers, volume: Object) -> list[str]:
        if not layers.place.stat(volume.name):
            return []
        with layers.place.existing(volume.name) as fd:
            return files.holders(self.path(volume), fd)


def _info(place: files.Place, target: Object) -> Info:
    """A file that is no qcow2 has the size 0."""
    with place.existing(target.name) as fd:
        allocated = os.fstat(fd).st_blocks * 512
        try:
            return Info(read(fd, target.name).size, allocated)
        except BackendError:
            return Info(0, allocated)

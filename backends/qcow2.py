"""Volumes as qcow2 files in a directory.

    [[backend]]
    name = "disks"
    kind = "qcow2"
    directory = "/srv/disks"       # absolute; `volctl backend init disks` puts the marker there
    cluster_size = "64K"
    extended_l2 = true             # subclusters: a small write over a snapshot copies 2 KiB of it, not 64
    lazy_refcounts = false
    preallocation = "off"          # "metadata": of blank volumes
    compression = "off"            # of image bases: "zlib", "zstd"
    owner = "libvirt-qemu"         # of new files; also group, and mode = "0600"

Host tools: qemu-img (qemu-utils); to attach takes root, qemu-storage-daemon (qemu-system-common), and nbd (Linux
5.14) or FUSE (Linux 5.8). Clones and snapshots take no time and share what they have in common: the file of a
volume lies over a layer or an image base (`volctl.qcow2`), by a name relative to the directory, with its format.
To open a file is to open all that it lies over, so each chain is compared with its rows before. Deleting a
snapshot merges its layer where only one file lies over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from volctl import files
from volctl.backend import Attached, Capabilities, Info, Listing, Progress, Setup, Target
from volctl.errors import BackendError, ConflictError, ImageCorruptError, InternalError, InUseError, UsageError
from volctl.files.device import SECTOR_SIZES, BlockDevice
from volctl.model import Object
from volctl.qcow2 import links, tool
from volctl.qcow2.export import PROGRAM, Export, attached, devices, means
from volctl.qcow2.header import Header, read
from volctl.qcow2.layers import Layers, base_of, layer, owner, snapshot_of
from volctl.qcow2.restore import restore
from volctl.qcow2.settings import OPTIONS, layout
from volctl.shelf import Shelf


class Qcow2(Shelf):
    kind = "qcow2"
    options = (*OPTIONS, "directory", "owner", "group", "mode", "capabilities")
    attribute = False  # a file may go on under another object's name, as its layer
    hidden = ("layer-",)
    format = "qcow2"
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
            carried_when_whole=True,
            sector_sizes=SECTOR_SIZES,
            extra=self.setup.options.get("capabilities", {}),
        )

    def tools(self) -> list[str]:
        return ["qemu-img", PROGRAM]

    @contextmanager
    def _opened(self, doing: str) -> Iterator[Layers]:
        """The pool, to work on its files and their rows."""
        if self.setup.chains is None:
            raise InternalError(f"backend {self.name} was opened without its rows")
        with self._directory.opened(doing) as place:
            yield Layers(place, self.setup.chains, self._layout.every)

    def create(self, target: Object, size: int) -> None:
        options = self._layout.base if target.kind == "image" else self._layout.blank
        with self._opened(f"create {target.name}") as layers:
            layers.put(target.name, None, size, self._ownership, options)
        self.describe(target)

    def clone(self, source: Object, target: Object, size: int, progress: Progress) -> None:
        with self._opened(f"clone {source.name} to {target.name}") as layers:
            length = layers.verified(source.name).size
            if size < length:
                raise BackendError(f"the source has {length} bytes, more than the {size} asked for")
            layers.collect(layer(target))
            below: str | None = base_of(source)
            if source.kind == "volume":
                below = layers.base_for(source, target, self._switch(layers, source))
            layers.put(target.name, below, size, self._ownership)
        self.describe(target)
        progress(length, length)

    def _switch(self, layers: Layers, volume: Object) -> Callable[[Path], None] | None:
        """How our daemon goes on in another file; None if nobody has the volume open, `InUseError` for others."""
        export = self._export(volume)
        export.check_file()
        if export.device():
            return export.switch
        export.stop()
        if holders := self._holders(layers, volume):
            raise InUseError(
                f"{volume.name} is in use by {', '.join(holders)}",
                hint="stop what uses it first: nobody else can say at which instant its bytes belong together",
            )
        return None

    def _export(self, volume: Object) -> Export:
        return Export.of(self.setup.database, self.path(volume))

    @contextmanager
    def writing(self, target: Object, size: int) -> Iterator[Target]:
        self.create(Object(target.kind, target.id), size)  # what it is about is told when it is whole
        compress = target.kind == "image" and self._layout.compress
        yield Target(self.path(target), "qcow2", zeroed=True, size=size, compress=compress)
        with self._opened(f"write {target.name}") as layers:
            layers.flush(target.name)
            if (found := layers.verified(target.name)).size != size or found.backing:
                raise BackendError(f"{target.name} has {found.size} bytes instead of {size}")
        self.describe(target)

    @contextmanager
    def reading(self, source: Object) -> Iterator[Target]:
        """A daemon that lost its device has nothing more to write, but the file to itself."""
        with self._opened(f"read {source.name}") as layers:
            if not (export := self._export(source)).device():
                export.stop()
            size = layers.header(source.name).size
            below = layers.paths_below(source.name)
        yield Target(self.path(source), "qcow2", zeroed=False, size=size, below=below)

    def extend(self, volume: Object, size: int) -> None:
        with self._opened(f"extend {volume.name}") as layers:
            length = layers.verified(volume.name).size
            if size < length:
                raise BackendError(f"{volume.name} has {length} bytes and cannot shrink to {size}")
            export = self._export(volume)
            if device := export.live():
                if device.size < size:  # also if a command was killed after the file had grown
                    export.grow(self.path(volume), size)
            elif size > length:
                export.stop()
                tool.resize(self.path(volume), layers.paths_below(volume.name), size)
            layers.flush(volume.name)

    def snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._opened(f"snapshot {volume.name} as {snapshot.name}") as layers:
            self._drop(layers, snapshot)
            layers.freeze(volume.name, layer(snapshot), self._switch(layers, volume))
            layers.place.link(layer(snapshot), snapshot.name)
        self.describe(snapshot)

    def delete_snapshot(self, volume: Object, snapshot: Object) -> None:
        with self._opened(f"delete {snapshot.name}") as layers:
            self._drop(layers, snapshot)

    def _drop(self, layers: Layers, snapshot: Object) -> None:
        """Take away the snapshot's name, and its layer if that is not needed."""
        layers.name_again(snapshot)
        layers.place.remove(snapshot.name)
        layers.collect(layer(snapshot))

    def revert(self, volume: Object, snapshot: Object, size: int) -> None:
        """The volume's file is replaced by another inode, in one step, with the owner and mode it had."""
        with self._opened(f"revert {volume.name} to {snapshot.name}") as layers:
            layers.verified(snapshot.name)
            self._export(volume).detach()
            with layers.place.existing(volume.name) as old:
                ownership = owner(old)
            layers.put(volume.name, layer(snapshot), size, ownership)

    def delete(self, volume: Object) -> None:
        with self._opened(f"delete {volume.name}") as layers:
            if volume.kind == "snap":
                self._drop(layers, volume)
                return
            if volume.kind == "volume":
                self._export(volume).detach()
            layers.remove(volume.name)
            layers.collect(layer(volume))

    def inspect(self, target: Object) -> Info | None:
        with self._at("inspect", target) as place:
            found, headers = place.stat(target.name), links.headers(place, target.name, live=self._is_live)
        return _sized(headers.get(target.name), found.st_blocks * 512) if found else None

    def listing(self) -> Listing:
        """Layers are neither objects nor foreign: they are part of what lies over them."""
        found = super().listing()
        with self._at("listing") as place:
            headers = links.headers(place, live=self._is_live)
            below = links.below(place, headers)
        there = {target: info for target, info in found.objects.items() if target.name in headers}
        infos = {target: _sized(headers[target.name], info.allocated) for target, info in there.items()}
        foreign = tuple(name for name in found.foreign if not links.is_layer(name))
        return replace(found, objects=infos, foreign=foreign, links=below, damaged=links.damaged(headers))

    def links(self, *names: str) -> Mapping[str, str | None]:
        with self._at("links") as place:
            return links.below(place, links.headers(place, *names))

    def damaged(self, *names: str) -> frozenset[str]:
        with self._at("damaged") as place:
            return links.damaged(links.headers(place, *names, live=self._is_live)) if names else frozenset()

    def _is_live(self, name: str) -> bool:
        return (target := files.object_named(name)) is not None and self.attached(target) is not None

    def clear(self, leftover: str) -> None:
        if not links.is_layer(leftover):
            super().clear(leftover)
            return
        with self._opened(f"clear {leftover}") as layers:
            layers.clear(leftover)

    def size_of(self, fd: int, name: str) -> int:
        try:
            (header := read(fd, name)).check_whole(name)
        except BackendError as error:
            kind = ImageCorruptError if error.details.get("corrupt") else UsageError
            raise kind(error.message, hint=error.hint) from error
        if header.backing:
            said = f"{name} lies over {header.backing}: a file of a chain cannot come or go alone"
            raise ConflictError(said, hint="volctl image save writes a whole copy")
        return header.size

    def details(self) -> dict[str, Any]:
        """Hidden layers are those without a snapshot: several files lie over them, or they were in use."""
        with self._at("details") as place:
            sizes = {name: stat.st_blocks * 512 for name, stat in place.entries()}
        hidden = [sizes[name] for name in sizes if links.is_layer(name) and snapshot_of(name) not in sizes]
        return {"hidden_layers": len(hidden), "hidden_size": sum(hidden), "devices": means()}

    def learn(self, name: str) -> None:
        with self._opened(f"note {name}") as layers:
            layers.learn(name)

    def restore(self) -> dict[Object, str]:
        with self._opened("note the chains") as layers:
            return restore(layers)

    def holders(self, volume: Object) -> list[str]:
        with self._opened(f"look at who holds {volume.name}") as layers:
            return self._holders(layers, volume)

    def _holders(self, layers: Layers, volume: Object) -> list[str]:
        if not layers.place.stat(volume.name):
            return []
        with layers.place.existing(volume.name) as fd:
            found = files.holders(self.path(volume), fd)
        export = self._export(volume)
        ours = tuple(f"(pid {pid})" for pid in export.daemon.ids()) if found else ()
        return [*export.users(), *(holder for holder in found if not holder.endswith(ours))]

    def attach(self, volume: Object, *, read_only: bool, sector_size: int | None = None) -> str:
        export = self._export(volume)
        with self._opened(f"attach {volume.name}") as layers:
            header = layers.verified(volume.name, whole=False)
            device = export.live()
            if not (device and _fits(device, read_only, sector_size)):
                export.check_file()
                export.detach()
                below = layers.paths_below(volume.name, whole=False)
                device = export.attach(self.path(volume), below, read_only=read_only, sector_size=sector_size)
            if device.size != header.size or not _fits(device, read_only, sector_size):
                raise BackendError(f"{device.node} has {device.size} bytes, or not the mode or sectors asked for")
        return str(device.node)

    def detach(self, volume: Object) -> None:
        """A layer that could not be merged while the daemon had it open is merged now."""
        with self._opened(f"detach {volume.name}") as layers:
            self._export(volume).detach()
            if layers.place.stat(volume.name):
                layers.flush(volume.name)
                layers.collect_below(volume.name)

    def attached(self, volume: Object, device: str | None = None) -> Attached | None:
        return attached(found) if (found := self._export(volume).live()) else None

    def resize_device(self, volume: Object) -> None:
        export = self._export(volume)
        with self._at("resize_device", volume):
            if export.live():
                export.resize(self.path(volume))

    def _devices(self) -> dict[Object, Attached]:
        return devices(self.setup.database, self.pool())


def _fits(device: BlockDevice, read_only: bool, sector_size: int | None) -> bool:
    return device.read_only == read_only and sector_size in (None, device.sector_size)


def _sized(header: Header | None, allocated: int) -> Info:
    """A file that is no qcow2 has the size 0."""
    return Info(header.size if header else 0, allocated)

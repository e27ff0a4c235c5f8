"""Chains of qcow2 files in one open pool directory: made, checked against their rows, taken apart.

What is cut off at any instant can be called again, and reads as before or as it was to become. The
rows (`Chains`) name a file's new parent before the file does, and forget the old one last. Layers
never change while something lies over them, but for one case: the one file over a hidden layer is
committed into it, which nobody can tell, and the layer then takes that file's name.

Nothing goes or is changed that a file lies over by its own word (`links`), whatever the rows know. They do
not take its word for it here, though: it may have been swapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from volctl import files
from volctl.backend import Chains
from volctl.errors import BackendError, Failure, ImageCorruptError, InUseError, NoSpaceError
from volctl.model import Object
from volctl.qcow2 import links, tool
from volctl.qcow2.header import Header, is_blank, read
from volctl.qcow2.links import is_below, is_layer, layer_of, same
from volctl.records import record

SCAN = 64
"""So many bytes of a disk are looked at in the time that one is copied."""


def layer(point: Object) -> str:
    """The frozen file of a snapshot, or of what a clone was made from."""
    return f"layer-{point.id}"


def new(name: str) -> str:
    """The name under which the file that is to replace `name` is made."""
    return f"new-{name}"


def base_of(source: Object) -> str:
    """The file that a clone of a snapshot or an image lies over."""
    return layer(source) if source.kind == "snap" else source.name


@record
class Layers:
    """The files of an open pool, and the rows about them. `options` are `qemu-img create -o` of new files."""

    place: files.Place
    chains: Chains
    options: Sequence[str]

    # -- look

    def header(self, name: str, *, whole: bool = True) -> Header:
        """`BackendError` for a file that was cut, unless it need not be `whole`."""
        with self.place.existing(name) as fd:
            header = read(fd, name)
        if whole:
            header.check_whole(name)
        return header

    def verified(self, name: str, *, whole: bool = True) -> Header:
        """The header of a file whose whole chain is as the rows say; `BackendError` if it is not.

        To be asked before a program opens the file, and with it all that it lies over.
        """
        self.below(name, whole=whole)
        return self.header(name, whole=whole)

    def below(self, name: str, *, whole: bool = True) -> list[str]:
        """What a file lies over, from the nearest on, compared with the rows as `verified` says.

        What was being merged when the power went may lack what is still in the file over it.
        """
        chain = [name]
        while True:
            header, parents = self.header(name, whole=whole), self.chains.parents(layer_of(name))
            whole = len(parents) == 1
            if header.backing not in parents or header.backing in chain:
                raise self._strange(name, header.backing, parents)
            if header.backing is None:
                return chain[1:]
            if header.backing_format != "qcow2":
                raise BackendError(f"{name} in {self.place.path} takes {header.backing} for {header.backing_format}")
            name = header.backing
            chain.append(name)

    def paths_below(self, name: str, *, whole: bool = True) -> tuple[Path, ...]:
        return tuple(self.place.path / each for each in self.below(name, whole=whole))

    def _strange(self, name: str, backing: str | None, parents: set[str | None]) -> BackendError:
        known = " or ".join(sorted(parent or "no file" for parent in parents))
        return BackendError(
            f"{name} in {self.place.path} was changed by somebody: it lies over {backing or 'no file'}, not {known}",
            hint="nothing was opened; put the file back that was there",
        )

    def learn(self, name: str) -> None:
        """Note what a file lies over by its own word, if that is there; a layer has its name again."""
        if is_layer(name):
            self.name_again(Object("snap", name.removeprefix("layer-")))
        header = links.headers(self.place, name).get(name) or self.header(name)
        if (below := header.backing) is not None and not (is_below(below) and below in links.names(self.place)):
            raise BackendError(f"{name} in {self.place.path} lies over {below}, which is not there, or not a layer")
        self.chains.note(name, {below})

    def _there(self, name: str) -> bool:
        return self.place.stat(name) is not None

    def over(self, name: str) -> list[str]:
        """The files that lie over `name`, by the rows; if by them there are none, by their own word."""
        return self._noted_over(name) or (links.over(self.place, name) if is_below(name) else [])

    def _noted_over(self, name: str) -> list[str]:
        """By the rows, of which some may not hold (any more)."""
        return [child for child in self.chains.children(name) if self._lies_over(child, name)]

    def _lies_over(self, child: str, name: str) -> bool:
        """A file that was swapped for another, or damaged, keeps what its predecessor needed.

        Only looks: who asks after an image does not hold the locks of all that may lie over it.
        """
        parents = self.chains.parents(child)
        if not self._there(child):
            return False
        try:
            backing = self.header(child, whole=False).backing
        except BackendError:
            return True
        return backing == name or backing not in parents

    def _put_right(self, name: str) -> None:
        """The rows of what does not lie over a layer any more; last, for by them is found what was cut off."""
        for child in self.chains.children(name):
            if not self._lies_over(child, name):
                self.chains.note(child, self.chains.parents(child) - {name} or {None})

    # -- make

    def put(
        self, name: str, parent: str | None, size: int, ownership: files.Ownership, options: Sequence[str] = ()
    ) -> None:
        """An empty file over `parent` takes the name; what only its predecessor needed goes."""
        before = self.chains.parents(name)
        if before != {parent}:
            self.chains.note(name, before | {parent})
        with self.place.fresh(new(name), ownership):
            tool.create(self.place.path / new(name), size, options or self.options, parent)
        self.place.replace(new(name), name)
        for old in before - {parent, None}:
            assert old is not None
            self.collect(old)
        if before != {parent}:
            self.chains.note(name, {parent})

    def freeze(self, volume: str, frozen: str, switch: Callable[[Path], None] | None = None) -> None:
        """What the volume holds becomes the layer `frozen`, and the volume an empty file over it.

        `switch` lets who has the volume open go on in the file at that path. Cut off before, it writes to
        the layer, which reads the same: the volume over it is empty, and no name of a snapshot was given.
        """
        header = self.verified(volume)
        self.chains.note(frozen, {header.backing})
        self.chains.note(volume, {header.backing, frozen})
        with self.place.existing(volume) as fd:
            ownership = owner(fd)
        self.place.link(volume, frozen)
        with self.place.fresh(new(volume), ownership):
            tool.create(self.place.path / new(volume), header.size, self.options, frozen)
        self.place.replace(new(volume), volume)
        if switch:
            switch(self.place.path / volume)
        self.chains.note(volume, {frozen})

    def base_for(self, source: Object, point: Object, switch: Callable[[Path], None] | None) -> str | None:
        """The file that a clone `point` of a volume is to lie over: as it is now, frozen unless it is empty."""
        with self.place.existing(source.name) as fd:
            header = read(fd, source.name)
            blank = is_blank(fd, header)
        if blank and not switch:
            return header.backing
        self.freeze(source.name, layer(point), switch)
        return layer(point)

    def flush(self, name: str) -> None:
        """What programs wrote into the file is on the disk."""
        with self.place.existing(name, os.O_RDWR):
            pass

    # -- take apart

    def remove(self, name: str) -> None:
        """Delete a file that nothing lies over, and what only it needed. `InUseError` for one that is needed."""
        if above := self.over(name):
            raise _in_use(f"{name} is needed by {len(above)} others such as {above[0]}", "delete them first")
        self.place.remove(new(name), name)
        self._forget(name)

    def clear(self, name: str) -> None:
        """As `collect`, for a layer without a snapshot that nobody has open; an error if it stays."""
        if self._there(name) and self._is_snapshot(name):
            raise _in_use(f"{name} is a snapshot's", "delete that first")
        try:
            if self._there(name):
                self._check_unheld(name)
            self._take_away(name)
        except Failure as error:
            error.untouched = True  # a merge that did not end reads the same, and the layer can stay
            raise
        self._put_right(name)
        if self._there(name):
            raise _in_use(f"{name} is needed, or what lies over it is not what its row says", "volctl doctor")

    def _forget(self, name: str) -> None:
        for parent in self.chains.parents(name) - {None}:
            assert parent is not None
            self.collect(parent)
        self.chains.note(name, {None})

    def collect(self, name: str) -> None:
        """Take away a hidden layer that fewer than two files lie over.

        To delete something must need no room, nobody's leave, and no sound file of another volume: where it does, the
        layer stays, hidden, and `doctor` tells. The caller holds the locks of its tree.
        """
        if is_layer(name) and not self._is_snapshot(name):
            with suppress(NoSpaceError, InUseError, ImageCorruptError):
                self._take_away(name)
            self._put_right(name)

    def _take_away(self, name: str) -> None:
        if not self._there(name):
            if not self._noted_over(name):
                self._forget(name)
        elif volume := next((child for child in self.chains.children(name) if same(self.place, child, name)), None):
            if not links.over(self.place, name):
                self._unfreeze(volume, name)
        elif len(noted := self._noted_over(name)) < 2:
            self._collect(name, noted, links.over(self.place, name))

    def _collect(self, name: str, noted: list[str], said: list[str]) -> None:
        """Where rows and files differ it stays, hidden: neither is known to be right."""
        if not noted and not said:
            self.place.remove(name)
            self._forget(name)
        elif noted == said and self._is_as_noted(noted[0]):
            for each in (name, noted[0]):
                self._check_unheld(each)
            try:
                self._merge(noted[0], name)
            except BackendError as error:
                if not self._is_damaged(noted[0], name):
                    raise
                message = f"{name} and {noted[0]} over it cannot be merged, one is damaged: {error.message}"
                raise ImageCorruptError(message, hint="look at them: qemu-img check -f qcow2 FILE") from error

    def _is_damaged(self, child: str, name: str) -> bool:
        """Has a program marked one of them, or found what is wrong?"""
        return not self._is_as_noted(child) or any(
            tool.is_corrupt(self.place.path / each, self.paths_below(each)) for each in (child, name)
        )

    def name_again(self, point: Object) -> None:
        """A layer that lost its name, and is needed, has it again from its snapshot."""
        name = layer(point)
        if not self._there(name) and self._is_snapshot(name) and links.over(self.place, name):
            self.place.link(snapshot_of(name), name)

    def collect_below(self, name: str) -> None:
        """What was in use when it could have been merged. A file that was swapped is left to who opens it next.

        Where a merge was cut off, only the rows still know the layer.
        """
        if not self._is_as_noted(name):
            return
        chain = [name, *self.below(name)]
        noted = {parent for each in chain for parent in self.chains.parents(layer_of(each)) if parent}
        for parent in [*chain[1:], *sorted(noted.difference(chain))]:
            self.collect(parent)

    def _is_as_noted(self, name: str) -> bool:
        try:
            self.below(name)
        except BackendError:
            return False
        return True

    def _unfreeze(self, volume: str, frozen: str) -> None:
        """A freeze that did not come to its end: the layer is still the volume itself."""
        self.place.remove(new(volume), frozen)
        self.chains.note(volume, {self.header(volume, whole=False).backing})
        self.chains.note(frozen, {None})

    def _check_unheld(self, name: str) -> None:
        with self.place.existing(name) as fd:
            if found := files.holders(self.place.path / name, fd):
                raise _in_use(f"{name} is in use by {', '.join(found)}", "stop what uses it first")

    def _merge(self, child: str, name: str) -> None:
        """The one file over a hidden layer becomes independent of it, on the way that copies less."""
        header, lower = self.verified(child), self.header(name, whole=False)
        parent = lower.backing
        self.chains.note(child, self.chains.parents(child) | {parent})
        if self._allocated(child) <= self._allocated(name) + (0 if parent else header.size // SCAN):
            self._commit(child, name)
        else:
            if lower.size < header.size:  # QEMU before 8.1 may loop for ever over a shorter file
                tool.resize(self.place.path / name, self.paths_below(name), header.size)
            tool.rebase(self.place.path / child, parent, self.paths_below(child))
            self.flush(child)
            self.place.remove(name)
        self.chains.note(child, {parent})
        self.chains.note(name, {None})

    def _commit(self, child: str, name: str) -> None:
        """Write what `child` holds into the layer, which then takes all its names."""
        with self.place.existing(child) as fd:
            ownership = owner(fd)
        tool.commit(self.place.path / child, self.paths_below(child))
        with self.place.existing(name, os.O_RDWR) as fd:
            ownership.apply(fd)
        if self._is_snapshot(child) and not same(self.place, snapshot_of(child), name):
            self.place.remove(new(child))
            self.place.link(name, new(child))
            self.place.replace(new(child), snapshot_of(child))
        self.place.replace(name, child)

    def _is_snapshot(self, name: str) -> bool:
        return is_layer(name) and self._there(snapshot_of(name))

    def _allocated(self, name: str) -> int:
        found = self.place.stat(name)
        return found.st_blocks * 512 if found else 0


def snapshot_of(name: str) -> str:
    """The snapshot's own name of a layer."""
    return name.replace("layer-", "snap-", 1)


def _in_use(said: str, hint: str) -> InUseError:
    """Before anything was done."""
    error = InUseError(said, hint=hint)
    error.untouched = True
    return error


def owner(fd: int) -> files.Ownership:
    had = os.fstat(fd)
    return files.Ownership(had.st_uid, had.st_gid, had.st_mode & 0o7777)

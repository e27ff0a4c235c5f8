"""Differences between the files that make chains (`volctl.backend.Chains`), and between them and their rows.

What lies over what is taken from the files: the rows may be of another time than they are (an older
database was put back). Only what is ours, and is there, is noted. Whatever works on a file of a chain
may change the next one, too: so all of them are locked, by their volumes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from volctl import files
from volctl.backend import Backend, Listing
from volctl.db.chains import StoredChains
from volctl.engine import journal
from volctl.engine.locks import EXCLUSIVE, LockSet
from volctl.flows.orphan import OrphanState
from volctl.model import Object, Status, is_uuid
from volctl.records import mutable
from volctl.service.doctor.difference import (
    DRIFT,
    HOLDING,
    Difference,
    backend_of,
    row_of,
    set_status,
    snapshot_of,
    worked_on,
)

if TYPE_CHECKING:
    from volctl.service.doctor.suspects import View
    from volctl.service.session import Session

Links = Mapping[str, str | None]


@mutable
class Unnoted(Difference):
    """A file lies over another one than its row says."""

    kind = "chain"

    def look(self, session: Session) -> bool:
        assert self.backend is not None
        said = _climbed(backend_of(session, self.backend), self.object)
        parents = StoredChains(session.store, self.backend).parents(self.object)
        if not is_unnoted(self.object, said, parents) or worked_on(session, _id(self.object)):
            return False
        known = " or ".join(sorted(parent or "no file" for parent in parents))
        self.problem = f"{self.object} lies over {said[self.object] or 'no file'}, its row says {known}"
        self.fix = "note what the file says"
        return True

    def repair(self, session: Session, locks: LockSet) -> None:
        backend_of(session, self.backend).learn(self.object)


@mutable
class NameLost(Difference):
    """Files lie over one that is there by its snapshot's name only."""

    kind = "chain"

    def look(self, session: Session) -> bool:
        snapshot = Object("snap", _id(self.object))
        there = backend_of(session, self.backend).links(self.object, snapshot.name)
        self.problem = f"{self.object}, which others lie over, is there as {snapshot.name} only"
        self.fix = "give the file that name again"
        return list(there) == [snapshot.name] and not worked_on(session, snapshot.id)

    def repair(self, session: Session, locks: LockSet) -> None:
        backend_of(session, self.backend).learn(self.object)


@mutable
class Broken(Difference):
    """A volume or snapshot needs a file that is gone, or that cannot be read."""

    kind = "chain"
    target: Object = field(kw_only=True)

    def look(self, session: Session) -> bool:
        row, wrong = row_of(session, self.target), below(session, self.backend, self.target)
        self.problem, self.fix = f"it lies over {wrong}", "set it to error"
        return row is not None and row.status in HOLDING and wrong is not None

    def repair(self, session: Session, locks: LockSet) -> None:
        fault = {"code": DRIFT, "message": self.problem}
        set_status(session, self.target, HOLDING, Status.ERROR, fault=fault)


@mutable
class Unneeded(Difference):
    """A hidden file that nothing lies over, by its own word or its row, and that no snapshot has."""

    kind = "leftover"
    deletes = True

    def look(self, session: Session) -> bool:
        assert self.backend is not None
        snapshot = Object("snap", _id(self.object))
        there = backend_of(session, self.backend).links(self.object, snapshot.name)
        self.problem = f"nothing lies over {self.object}, and it is no snapshot's"
        self.fix = f"remove it from backend {self.backend}"
        known = snapshot_of(session, snapshot.id) or worked_on(session, snapshot.id)
        return list(there) == [self.object] and not known and not noted_over(session, self.backend, self.object)

    def repair(self, session: Session, locks: LockSet) -> None:
        made_for = _id(self.object)
        state = OrphanState(self.backend or "", "volume", made_for, made_for, leftover=self.object)
        session.engine.start("orphan_delete", state, object_id=made_for, locks=locks)


@mutable
class Unmerged(Unneeded):
    """A hidden file that one other lies over, by its own word and its row, and that nobody has open."""

    kind = "chain"
    deletes = False
    child: str = field(kw_only=True)

    def look(self, session: Session) -> bool:
        assert self.backend is not None
        snapshot = Object("snap", _id(self.object))
        there = backend_of(session, self.backend).links(self.object, self.child, snapshot.name)
        self.problem = f"only {self.child} lies over {self.object}, and it is no snapshot's"
        self.fix = "merge them"
        return (
            there.keys() == {self.object, self.child}
            and there[self.child] == self.object
            and noted_over(session, self.backend, self.object) == [self.child]
            and not (snapshot_of(session, snapshot.id) or self._worked_on(session) or self._held(session))
        )

    def _worked_on(self, session: Session) -> bool:
        """The tree."""
        with session.store.read() as tx:
            return any(self.locks.keys() & flow["locks"].keys() for flow in journal.unfinished(tx, all_=True))

    def _held(self, session: Session) -> bool:
        path = backend_of(session, self.backend).path(Object("snap", _id(self.object))).with_name(self.object)
        with files.translated(f"look at {path}"), files.os_open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) as fd:
            return bool(files.holders(path, fd))


def suspects(view: View) -> Iterator[Difference]:
    """Names first, then rows, then what is left of objects that need what is gone."""
    for backend, listing in view.listings.items():
        for name in sorted({missing for target in listing.objects if (missing := gap(target.name, listing.links))}):
            if Object("snap", _id(name)) in listing.objects:
                yield NameLost(name, None, None, backend, view.shared(backend, name))
        for name in listing.links:
            if is_unnoted(name, listing.links, view.noted.get((backend, name), {None})):
                target = files.object_named(name)
                locks = {_id(name): EXCLUSIVE} | view.shared(backend, name)
                yield Unnoted(name, target.id if target else None, None, backend, locks)
        yield from _broken(view, backend, listing)


def _broken(view: View, backend: str, listing: Listing) -> Iterator[Difference]:
    for target in listing.objects:
        if _wrong(target.name, listing.links, listing.damaged) is None:
            continue
        volume, snapshot = view.volumes.get(target.id), view.snapshots.get(target.id)
        locks = view.shared(backend, target.name)
        if volume and volume.backend == backend:
            yield Broken(target.name, volume.id, volume.name, backend, {volume.id: EXCLUSIVE} | locks, target=target)
        if snapshot and view.backend_of(snapshot) == backend:
            locks = {snapshot.volume_id: EXCLUSIVE} | locks
            yield Broken(target.name, snapshot.id, snapshot.name, backend, locks, target=target)


def unneeded(view: View) -> Iterator[Difference]:
    """Nothing can come to lie over them any more, or only one file does."""
    for backend, listing in view.listings.items():
        over: dict[str | None, list[str]] = {}
        for name, below in listing.links.items():
            over.setdefault(below, []).append(name)
        for name in filter(_is_hidden, listing.links):
            children = over.get(name, [])
            if len(children) > 1:
                continue
            locks = {_id(name): EXCLUSIVE} | view.shared(backend, name)
            if not children:
                yield Unneeded(name, None, None, backend, locks)
            elif _may_merge(children[0], name, listing):
                yield Unmerged(name, None, None, backend, locks, child=children[0])


def _may_merge(child: str, name: str, listing: Listing) -> bool:
    """A snapshot is another name of its layer, or has lost that."""
    return not child.startswith("snap-") and not listing.damaged & {child, name}


def noted_over(session: Session, backend: str | None, name: str) -> list[str]:
    """What lies over a hidden file by its row, unless its own word is that it lies over another that its row names."""
    chains = StoredChains(session.store, backend or "")
    return [child for child in chains.children(name) if _needs(session, chains, child, name)]


def _needs(session: Session, chains: StoredChains, child: str, name: str) -> bool:
    """What is damaged may be mended, and the file of a volume that has a row, or of others' files, may be put back."""
    pool = backend_of(session, chains.backend)
    said, parents = pool.links(child), chains.parents(child)
    if child in said and child not in pool.damaged(child):
        return said[child] == name or said[child] not in parents
    target = files.object_named(child)
    return child in pool.damaged(child) or bool(row_of(session, target) if target else chains.children(child))


def is_unnoted(name: str, links: Links, parents: set[str | None]) -> bool:
    """What may be noted differs from what is. A snapshot's row is that of the file that others lie over."""
    target = files.object_named(name)
    if name not in links or (target and target.kind == "snap") or links[name] in parents:
        return False
    return links[name] is None or _may_be_below(links[name] or "", links)


def gap(name: str, links: Links) -> str | None:
    """The first file that is needed by one that is there, and is not, or lies over itself."""
    seen = {name}
    while (below := links.get(name)) is not None:
        if below in seen or not _may_be_below(below, links):
            return below
        seen.add(below)
        name = below
    return None


def below(session: Session, backend: str | None, target: Object) -> str | None:
    """What is wrong with the files that an object lies over, as they are now."""
    pool = backend_of(session, backend)
    links = _climbed(pool, target.name)
    return _wrong(target.name, links, pool.damaged(*links))


def _wrong(name: str, links: Links, damaged: Collection[str]) -> str | None:
    if missing := gap(name, links):
        return f"{missing}, which is not there, or nothing that it may lie over"
    lower = links.get(name)
    while lower is not None and lower not in damaged:
        lower = links.get(lower)
    return lower and f"{lower}, which is damaged"


def _may_be_below(name: str, links: Links) -> bool:
    """Is it there, and no volume or snapshot? Those change, or go by another name."""
    target = files.object_named(name)
    return name in links and (target is None or target.kind == "image")


def _climbed(backend: Backend, name: str | None) -> dict[str, str | None]:
    """What a file lies over, and what that does."""
    links: dict[str, str | None] = {}
    while name is not None and name not in links and (said := backend.links(name)):
        links |= said
        name = said[name]
    return links


def shared(listing: Listing, trees: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """For each file, the locks of all volumes that have hidden files in common with it, also by the files alone."""
    lowest = bottoms(listing.links)
    known: dict[str, set[str]] = {}
    for target in listing.objects:
        if target.id in trees and target.name in lowest:
            known.setdefault(lowest[target.name], set()).add(trees[target.id])
    locks = {bottom: dict.fromkeys(known.get(bottom, {_id(bottom)}), EXCLUSIVE) for bottom in lowest.values()}
    return locks | {name: locks[bottom] for name, bottom in lowest.items()}


def bottoms(links: Links) -> dict[str, str]:
    """For each file, the last hidden one below it: files of one tree have it in common. Itself without one."""
    return {name: _bottom(name, links) for name in links}


def _bottom(name: str, links: Links) -> str:
    """Whether or not it is there."""
    seen = {name}
    while (below := links.get(name)) is not None and _is_hidden(below) and below not in seen:
        seen.add(below)
        name = below
    return name


def _is_hidden(name: str) -> bool:
    """It may be another's name for what lies elsewhere, and is to name a lock."""
    return is_uuid(_id(name)) and files.object_named(name) is None


def _id(name: str) -> str:
    return name.partition("-")[2]

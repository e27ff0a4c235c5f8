"""The family of volumes: snapshots, and what was made from what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volctl.db import snapshots, volumes
from volctl.flows import refs
from volctl.model import Snapshot, SourceKind, TreeNode, Volume
from volctl.service.session import Session
from volctl.service.volumes import attached_as_found

if TYPE_CHECKING:
    from sqlalchemy import Connection


def tree(session: Session, ref: str | None) -> list[TreeNode]:
    """Volumes with their snapshots, and what was made from them; all of the project without `ref`."""
    attached_as_found(session)
    with session.store.read() as tx:
        if ref is not None:
            return [_node(tx, refs.volume(tx, session.project, ref))]
        every = volumes.listing(tx, project=session.project, equal={}, sort="created_at", descending=False)
        roots = [volume for volume in every if not _has_parent(tx, volume)]
        return [_node(tx, volume) for volume in roots]


def _has_parent(tx: Connection, volume: Volume) -> bool:
    source = volume.source
    if source.id is None or source.kind is SourceKind.IMAGE:
        return False
    found = snapshots.find(tx, source.id) if source.kind is SourceKind.SNAPSHOT else volumes.find(tx, source.id)
    return found is not None


def _node(tx: Connection, volume: Volume) -> TreeNode:
    clones = [_node(tx, clone) for clone in volumes.children(tx, [volume.id])]
    own = [_snapshot_node(tx, snapshot) for snapshot in snapshots.of_volume(tx, volume.id)]
    return TreeNode("volume", volume.id, volume.name, volume.size, volume.status, (*own, *clones))


def _snapshot_node(tx: Connection, snapshot: Snapshot) -> TreeNode:
    clones = tuple(_node(tx, clone) for clone in volumes.children(tx, [snapshot.id]))
    return TreeNode("snapshot", snapshot.id, snapshot.name, snapshot.size, snapshot.status, clones)

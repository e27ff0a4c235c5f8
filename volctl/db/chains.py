"""Which file of a pool may lie over which (`volctl.backend.Chains`), in transactions of their own."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, insert, select

from volctl.db.store import Store
from volctl.db.tables import layers
from volctl.records import record

_NONE = ""


def noted(tx: Connection) -> dict[tuple[str, str], set[str | None]]:
    """By backend and name, all that `parents` would say."""
    found: dict[tuple[str, str], set[str | None]] = {}
    for backend, name, parent in tx.execute(select(layers.c.backend, layers.c.name, layers.c.parent)):
        found.setdefault((backend, name), set()).add(parent or None)
    return found


@record
class StoredChains:
    """Of one backend."""

    store: Store
    backend: str

    def parents(self, name: str) -> set[str | None]:
        with self.store.read() as tx:
            query = select(layers.c.parent).where(layers.c.backend == self.backend, layers.c.name == name)
            return {parent or None for parent in tx.execute(query).scalars()} or {None}

    def children(self, name: str) -> list[str]:
        with self.store.read() as tx:
            query = select(layers.c.name).where(layers.c.backend == self.backend, layers.c.parent == name)
            return list(tx.execute(query.order_by(layers.c.name)).scalars())

    def note(self, name: str, parents: Collection[str | None]) -> None:
        rows = [{"backend": self.backend, "name": name, "parent": parent or _NONE} for parent in set(parents)]
        with self.store.write() as tx:
            tx.execute(delete(layers).where(layers.c.backend == self.backend, layers.c.name == name))
            if set(parents) != {None}:
                tx.execute(insert(layers), rows)

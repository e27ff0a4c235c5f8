"""What every task is given besides its state: the database, the configuration, the backends, open images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from volctl.backend import Backend, Setup
from volctl.config import BackendConfig, Config, Places
from volctl.db import about, image_cache
from volctl.db.chains import StoredChains
from volctl.db.store import RECIPE, Store
from volctl.errors import BackendError, ConfigError, DatabaseError, NotFoundError
from volctl.images import content
from volctl.kinds import load
from volctl.model import GiB, Json, Object
from volctl.quota import Quota
from volctl.records import mutable

if TYPE_CHECKING:
    from volctl.images.fetch import Download
    from volctl.images.gate import CheckedImage, Known, Unpacking
    from volctl.images.signatures import Signature


class Backends:
    """The configured backends, each made on first use."""

    def __init__(self, config: Config, database: str, state: Path, store: Store | None = None) -> None:
        self._configs = {backend.name: backend for backend in config.backends}
        self._database = database
        self._state = state
        self._store = store
        self._made: dict[str, Backend] = {}

    @property
    def configs(self) -> list[BackendConfig]:
        return list(self._configs.values())

    def get(self, name: str | None) -> Backend:
        """`BackendError` if no backend of that name is configured (any more)."""
        if name is None or name not in self._configs:
            raise BackendError(
                f"backend {name} is not configured", hint="put it back into the configuration, or delete with --force"
            )
        if name not in self._made:
            self._made[name] = self._make(self._configs[name])
        return self._made[name]

    def has(self, name: str | None) -> bool:
        return name in self._configs

    def ask(self, name: str) -> Backend:
        """A backend that the user named: `NotFoundError` with the known ones."""
        if name not in self._configs:
            raise NotFoundError(f"there is no backend {name!r}", hint=f"backends: {', '.join(self._configs)}")
        return self.get(name)

    def all(self) -> list[tuple[BackendConfig, Backend]]:
        """In the order of the configuration; `ConfigError` if two are one pool."""
        made = [(config, self.get(config.name)) for config in self.configs]
        check_pools([backend for _, backend in made])
        return made

    def expect_survey(self) -> None:
        """All will be looked at soon; those that take long to ask are asked now, side by side."""
        for config, backend in self.all():
            if config.enabled:
                backend.expect_survey()

    def close(self) -> None:
        for backend in self._made.values():
            backend.close()

    def refuse_claimed(self, name: str, database: Path) -> None:
        """`DatabaseError` if this backend holds objects of a database that is not there."""
        if owner := self.owner(name):
            raise DatabaseError(
                f"the database {database} is missing, but backend {name} holds volumes of database {owner}",
                hint=RECIPE,
            )

    def owner(self, name: str, *, empty: bool = False) -> str | None:
        """The database whose objects a backend holds, or with `empty` may hold, whichever that is."""
        return load(self._configs[name].kind)(self._setup(self._configs[name])).claimed(empty=empty)

    def _setup(self, config: BackendConfig) -> Setup:
        owner = self._owner() if config.builtin else None
        chains = StoredChains(self._store, config.name) if self._store else None
        known = partial(self._has_row, config.name)
        return Setup(config.name, config.options, self._database, config.builtin, owner, chains, known)

    def _has_row(self, backend: str, target: Object) -> bool:
        if self._store is None:
            return False
        with self._store.read() as tx:
            return about.backend_of(tx, target) == backend

    def _make(self, config: BackendConfig) -> Backend:
        backend = load(config.kind)(self._setup(config))
        if config.builtin and backend.check():
            backend.init()
        return backend

    def _owner(self) -> tuple[int, int] | None:
        """As root in a state directory of somebody else, new files are theirs."""
        found = self._state.stat()
        return (found.st_uid, found.st_gid) if os.geteuid() == 0 and found.st_uid != 0 else None


def _signature(words: Json) -> Signature:
    from volctl.images.signatures import Signature

    return Signature(**words)


def check_pools(backends: Sequence[Backend]) -> None:
    """`ConfigError` if two are one directory, volume group or pool, of whatever kinds they are."""
    seen: dict[str | tuple[int, int], str] = {}
    for backend in backends:
        if (other := seen.setdefault(_pool(backend), backend.name)) != backend.name:
            raise ConfigError(f"backends {other!r} and {backend.name!r} are the same pool {backend.pool()}")


def _pool(backend: Backend) -> str | tuple[int, int]:
    """A directory that is there has one inode by whatever path (`mount --bind`)."""
    try:
        found = os.stat(backend.pool()) if os.path.isabs(backend.pool()) else None
    except OSError:
        return backend.pool()
    return (found.st_dev, found.st_ino) if found else backend.pool()


@mutable
class Context:
    """The environment of the flows of one command. `progress(what, done, total)` hears of copies."""

    store: Store
    config: Config
    places: Places
    backends: Backends
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    warn: Callable[[str], None] = lambda line: None
    downloads: dict[str, Download] = field(default_factory=dict)
    """What this command fetches, by its URL."""
    _images: dict[tuple[str, str, str | None, bool], CheckedImage] = field(default_factory=dict)

    def image(
        self,
        path: str,
        declared: str,
        checksum: str | None,
        allow_device: bool,
        signature: Json | None = None,
        size: int | None = None,
        *,
        cached: bool = False,
    ) -> CheckedImage:
        """Open and check an image once for this command; later users get the same descriptor.

        `signature` is what `Signature` is made of. `size` is that of the volume it is for, in bytes: a
        packed image may not become much larger. `cached`: a file that the image cache was filled from
        and that is unchanged need not be looked at again (`CheckedImage.known`); who reads it does not
        say so, and it is.
        """
        key = (path, declared, checksum, allow_device)
        held = self._images.get(key)
        if held is None or (held.known and not cached):
            from volctl.images.gate import open_image

            opened = open_image(
                path,
                declared=declared,
                checksum=checksum,
                allow_device=allow_device,
                unpacking=self.unpacking(size),
                known=self._known if cached else None,
                signature=_signature(signature) if signature else None,
            )
            self._images[key] = opened
            if held is not None:
                os.close(held.fd)
                opened.verify_same(held)
        return self._images[key]

    def unpacking(self, size: int | None) -> Unpacking:
        from volctl.images.gate import Unpacking

        limit = self.config.images["max_gigabytes"] * GiB
        return Unpacking(self.places.images, size, limit, lambda done, total: self.progress("unpack", done, total))

    def _known(self, identity: dict[str, int]) -> Known | None:
        """What was found when the image cache was filled from this file."""
        with self.store.read() as tx:
            entry = image_cache.of_file(tx, content.of_file(identity))
        if entry is None:
            return None
        from volctl.images.gate import Known

        digest = content.digest_of(entry.key)
        return Known(entry.format, entry.virtual_size, entry.data_size, digest, entry.packed)

    def quota(self, project: str) -> Quota:
        return Quota(project, self.config.quota, not self.config.no_snapshot_gb_quota)

    def close(self) -> None:
        self.backends.close()
        for download in self.downloads.values():
            download.close()
        for image in self._images.values():
            os.close(image.fd)
        self._images.clear()

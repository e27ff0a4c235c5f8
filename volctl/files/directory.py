"""The directory of a pool, its marker, and the files in it: made, replaced and deleted durably.

A `Directory` carries a marker file with the uuid of one database, and `Directory.opened` is the only
way in. What it gives, a `Place`, works relative to one descriptor of the directory and never follows
a symlink, so nothing can be redirected between two steps.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

from volctl import interrupt
from volctl.errors import AccessError, BackendError, ConfigError, ConflictError, Failure, VolctlError, of_os
from volctl.model import Object
from volctl.records import record

MARKER = ".volctl"
_ADVICE = "mount it, or prepare it once: volctl backend init "
_OBJECT = re.compile(r"(volume|snap|image)-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_NOBODYS = 2**32 - 1  # no user or group has it: to chown(2) it says to leave what is
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_TRICKS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Inside, an OSError becomes the error that SPEC wants, saying that one could not do `doing`."""
    try:
        yield
    except OSError as error:
        raise of_os(error, doing) from error


@record
class Ownership:
    """Of new files; -1 leaves the user or the group as it is."""

    uid: int = -1
    gid: int = -1
    mode: int = 0o600

    @classmethod
    def of(cls, options: Mapping[str, Any], default: tuple[int, int] | None) -> Ownership:
        """From the options `owner`, `group` (names or numbers) and `mode` (octal text)."""
        mode = options.get("mode", "0600")
        if not isinstance(mode, str) or not re.fullmatch(r"0?[0-7]{3}", mode):
            raise ConfigError(f"mode = {mode!r} is not an octal mode", hint='write mode = "0600"')
        uid, gid = _id("owner", options.get("owner")), _id("group", options.get("group"))
        if uid == gid == -1 and default:
            uid, gid = default
        return cls(uid, gid, int(mode, 8))

    def apply(self, fd: int) -> None:
        os.fchmod(fd, self.mode)
        have = os.fstat(fd)
        if self.uid not in (-1, have.st_uid) or self.gid not in (-1, have.st_gid):
            os.fchown(fd, self.uid, self.gid)


def _id(option: str, value: object) -> int:
    if value is None:
        return -1
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _NOBODYS:
        return value
    import grp
    import pwd

    try:
        return pwd.getpwnam(str(value)).pw_uid if option == "owner" else grp.getgrnam(str(value)).gr_gid
    except (KeyError, ValueError):  # the latter for a NUL in it
        raise ConfigError(
            f"{option} = {value!r}: there is no such {'user' if option == 'owner' else 'group'}"
        ) from None


def directory_option(backend: str, options: Mapping[str, Any]) -> Path:
    """The option `directory`, which must be an absolute path."""
    directory = options.get("directory")
    if not isinstance(directory, str | Path) or not os.path.isabs(directory) or "\0" in str(directory):
        said = f"backend {backend}: directory = {directory!r} is not an absolute path"
        raise ConfigError(said, hint='write directory = "/srv/volumes"')
    return Path(directory)


@record
class Directory:
    """The pool directory of one backend. `sync=False` gives up being safe from power loss (tests)."""

    path: Path
    database: str
    backend: str
    sync: bool = True

    @contextmanager
    def opened(self, doing: str) -> Iterator[Place]:
        """The directory, if it carries our marker; else `BackendError`, whatever was to be done.

        OSErrors inside are translated, with `doing` as in `create volume-…`.
        """
        with translated(f"{doing} in {self.path}"), self._entered() as at:
            if trouble := self._unmarked(at):
                raise BackendError(f"cannot {doing}: {trouble.message}", hint=trouble.hint)
            yield Place(at, self.path, self.sync)

    @contextmanager
    def _entered(self) -> Iterator[int]:
        try:
            at = os.open(self.path, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            why = "not there" if isinstance(error, FileNotFoundError) else "not a directory"
            raise BackendError(
                f"{self.path} of backend {self.backend} is {why}", hint=_ADVICE + self.backend
            ) from error
        try:
            yield at
        finally:
            os.close(at)

    def _unmarked(self, at: int) -> BackendError | None:
        owner = _owner(at)
        if owner == self.database:
            return None
        if owner is None:
            said = f"{self.path} of backend {self.backend} is not mounted or not initialised (no {MARKER} file)"
            return BackendError(said, hint=_ADVICE + self.backend)
        if not owner:
            said = f"{self.path} of backend {self.backend} cannot be told to be ours: its marker is damaged"
            return BackendError(said, hint=f"write it again: volctl backend init {self.backend}")
        said = f"{self.path} of backend {self.backend} belongs to another database ({owner})"
        hint = "give each state directory a directory of its own"
        if not _objects(at):
            hint += f"; if that database is no more, take its empty one: volctl backend init {self.backend}"
        return BackendError(said, hint=hint)

    def trouble(self) -> VolctlError | None:
        """What keeps the directory from being used."""
        try:
            with translated(f"use {self.path}"), self._entered() as at:
                if unmarked := self._unmarked(at):
                    return unmarked
                if not os.access(self.path, os.W_OK | os.X_OK, effective_ids=True):
                    return AccessError(f"{self.path} of backend {self.backend} is not writable for this user")
        except Failure as error:
            return error
        return None

    def claimed(self, *, empty: bool = False) -> str | None:
        """The database whose marker is here, beside objects or `empty`; None if there is no such thing."""
        with suppress(OSError, Failure), self._entered() as at:
            return (_owner(at) or None) if empty or _objects(at) else None
        return None

    def init(
        self,
        ownership: Ownership,
        *,
        again: bool,
        dry_run: bool,
        known: Callable[[Object], bool] = lambda target: False,
    ) -> list[str]:
        """Make the directory's last component and its marker; sentences of what was, or would be, done.

        `again` takes over another database's directory if it is empty. Else `ConflictError` for one,
        and for objects without a marker, or with a damaged one, that are not all `known`.
        """
        done, held = [], 0
        with translated(f"prepare {self.path}"):
            if not self.path.exists():
                done.append(f"{'would make' if dry_run else 'made'} the directory {self.path}")
                if not dry_run:
                    self._make(ownership)
            if not (done and dry_run):
                with self._locked() as at:
                    if not self._may_mark(at, again, known):
                        return done
                    held = len(_objects(at))
                    if owner := _owner(at):
                        said = "would take" if dry_run else "took"
                        done.append(f"{said} {self.path} from database {owner}, which has nothing in it")
                    if not dry_run:
                        self._mark(at, ownership)
        knowing = f", which knows the {held} objects in it" if held else ""
        return [*done, f"{'would mark' if dry_run else 'marked'} {self.path} as a pool of this database{knowing}"]

    def _make(self, ownership: Ownership) -> None:
        with os_open(self.path.parent, _DIRECTORY) as parent:
            with suppress(FileExistsError):  # another command's first run made it
                os.mkdir(self.path.name, 0o700, dir_fd=parent)
            with os_open(self.path.name, _DIRECTORY, parent) as at:
                Ownership(ownership.uid, ownership.gid, 0o700).apply(at)
            os.fsync(parent)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        with self._entered() as at:
            while True:
                try:
                    fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    interrupt.pause(0.02)
            yield at

    def _may_mark(self, at: int, again: bool, known: Callable[[Object], bool]) -> bool:
        """False if it is marked already."""
        trouble, objects = self._unmarked(at), _objects(at)
        if not trouble:
            return False
        owner = _owner(at)
        if owner and not (again and not objects):
            raise ConflictError(trouble.message, hint="choose another directory")
        if strange := sorted(target.name for target in objects if not known(target)):
            said = f"{self.path} has {'no' if owner is None else 'a damaged'} marker but holds {strange[0]}"
            hint = "move it away, use the database that knows it, or choose another directory"
            raise ConflictError(f"{said}, which has no row on backend {self.backend} in this database", hint=hint)
        return True

    def _mark(self, at: int, ownership: Ownership) -> None:
        text = json.dumps({"volctl": 1, "database": self.database}) + "\n"
        place = Place(at, self.path, True)
        with place.fresh(MARKER + ".new", Ownership(ownership.uid, ownership.gid)) as fd:
            os.write(fd, text.encode())
        place.replace(MARKER + ".new", MARKER)


def _owner(at: int) -> str | None:
    """The uuid in the marker; None without a marker, empty if it is damaged."""
    try:
        with os_open(MARKER, os.O_RDONLY | _NO_TRICKS, at) as fd:
            return str(json.loads(os.read(fd, 4096))["database"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _objects(at: int) -> list[Object]:
    return list(filter(None, map(object_named, os.listdir(at))))


def sidecar(name: str) -> str:
    """The file beside an object that holds what the object's own file has no place for (`volctl.files.about`)."""
    return f"{MARKER}-{name}"


def object_named(name: str) -> Object | None:
    """The object whose name on a backend this is; None if it is no such name."""
    match = _OBJECT.fullmatch(name)
    return Object(cast(Literal["volume", "snap", "image"], match[1]), match[2]) if match else None


@contextmanager
def os_open(path: Path | str, flags: int, at: int | None = None, mode: int = 0o600) -> Iterator[int]:
    fd = os.open(path, flags, mode, dir_fd=at)
    try:
        yield fd
    finally:
        os.close(fd)


@record
class Place:
    """An open pool directory. What its methods did is durable when they return."""

    fd: int
    path: Path
    sync: bool

    @contextmanager
    def fresh(self, name: str, ownership: Ownership) -> Iterator[int]:
        """A new empty file, whatever was there; durable when the block ends well."""
        self._unlink(name)
        with os_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_TRICKS, self.fd) as fd:
            ownership.apply(fd)
            yield fd
            self.flush(fd)
        self.flush(self.fd)

    @contextmanager
    def existing(self, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
        """A file that must be there; what was done to it is durable if `flags` let one write."""
        if not self.stat(name):
            raise BackendError(f"{name} is not in {self.path}")
        with os_open(name, flags | _NO_TRICKS, self.fd) as fd:
            yield fd
            if flags & os.O_RDWR:
                self.flush(fd)

    def stat(self, name: str) -> os.stat_result | None:
        """None if it is not there; `BackendError` if something else bears its name."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise BackendError(f"{name} in {self.path} is not a regular file")
        return found

    def replace(self, name: str, other: str) -> None:
        """Give the file `name` the name `other`, in one step."""
        os.rename(name, other, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.flush(self.fd)

    def link(self, name: str, other: str) -> None:
        """Give the file `name` a second name, which must be free."""
        os.link(name, other, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        self.flush(self.fd)

    def remove(self, *names: str) -> None:
        for name in names:
            self._unlink(name)
        self.flush(self.fd)  # also when all are gone: whoever unlinked them may have died before this

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)
        for beside in (sidecar(name), sidecar(name) + ".new"):
            with suppress(FileNotFoundError):
                os.stat(beside, dir_fd=self.fd, follow_symlinks=False)
                os.unlink(beside, dir_fd=self.fd)

    def flush(self, fd: int) -> None:
        if self.sync:
            os.fsync(fd)

    def objects(self) -> list[Object]:
        return _objects(self.fd)

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Everything in the directory but the marker and sidecars, as it is itself."""
        with os.scandir(self.fd) as found:
            for entry in found:
                with suppress(FileNotFoundError):  # gone since
                    if entry.name != MARKER and not entry.name.startswith(sidecar("")):
                        yield entry.name, entry.stat(follow_symlinks=False)

"""The verbs of LVM, one function each: never a prompt, always a time limit, errors that say which kind.

`NoSpaceError`: the group or pool is full. `ExistsError`: an LV of that name is there. `InUseError`:
somebody has the LV open. `MissingError`: a program or kernel target. `AccessError`: not root. The rest
is `BackendError`. What may pass (a segmentation fault, a race with udev) is tried again `TRIES` times.

LVM closes inherited descriptors, so our locks travel in its stdin until it ends. It blocks signals
while devices are suspended, hence the long grace before it is killed.
Sources: lvcreate(8), lvchange(8), lvconvert(8), lvextend(8), lvmthin(7), lvm.conf(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import field

from volctl import command, interrupt
from volctl.errors import (
    AccessError,
    BackendError,
    ExistsError,
    InUseError,
    MissingError,
    NoSpaceError,
    VolctlError,
)
from volctl.lvm.report import ARGUMENTS, VolumeGroup, parse
from volctl.records import record

LOOK, CHANGE = 60.0, 120.0  # seconds that a report and a change may take
GRACE = 5.0
TRIES = 3
ANY = range(-64, 256)  # what a status means is told from the words
CRASHED = (-11, -7)  # ended by SIGSEGV or SIGBUS
_PASSING = r"(?i)udev.*(fail|time)|cookie|semid|not found: device not cleared"
REPORT = ("fullreport", *ARGUMENTS)


class AbsentError(BackendError):
    """There is no LV of that name."""


_KINDS: tuple[tuple[str, type[VolctlError], str | None], ...] = (
    (r"insufficient (suitable |free )|not enough|reached threshold|no space left", NoSpaceError, "extend the group"),
    (r"already exists in volume group", ExistsError, None),
    (r"device-mapper driver|mapper target\(s\) not detected", MissingError, "load the kernel's module dm_mod"),
    (r"thin_check.*(fail|no such)|execvp failed", MissingError, "install the package thin-provisioning-tools"),
    (r"permission denied|operation not permitted", AccessError, None),
    (r"failed to find logical volume|not found in volume group", AbsentError, None),
    (
        r"contains a filesystem in use|in use|not deactivating|used by another device|resource busy",
        InUseError,
        "stop what uses it",
    ),
)


@record
class Layout:
    """How the extents of a thick LV lie: extra copies, stripes, and the PVs they may come from (all if empty)."""

    mirrors: int = 0
    stripes: int = 1
    pvs: Sequence[str] = ()

    @property
    def arguments(self) -> list[str]:
        kind = ("raid10" if self.stripes > 1 else "raid1") if self.mirrors else ("striped" if self.stripes > 1 else "")
        return [
            *(["--type", kind] if kind else []),
            *(["--mirrors", str(self.mirrors)] if self.mirrors else []),
            *(["--stripes", str(self.stripes)] if self.stripes > 1 else []),
        ]


@record
class Group:
    """The verbs, for one volume group. `locks` are descriptors that LVM's process is to hold as well."""

    name: str
    locks: Collection[int] = field(default=())

    def ask(self) -> command.Running:
        """Begin a report, which `report` waits for."""
        _refuse_others()
        return command.start("lvm", *REPORT, self.name, ok=ANY, timeout=LOOK, grace=GRACE)

    def report(self, asked: command.Running | None = None) -> VolumeGroup:
        """The group as it is now, or was when it was `asked`; `BackendError` if it is not there."""
        try:
            out = self._run(*REPORT, self.name, timeout=LOOK, changes=False, begun=asked).out
        except BackendError as error:
            if "not found" not in error.details.get("stderr", ""):
                raise
            said = f"volume group {self.name} is not there"
            hint = f"see `vgs`: it has another name, or its disks are missing; or make it: vgcreate {self.name} DISK"
            raise BackendError(said, hint=hint) from error
        if (found := parse(out)) is None:
            raise BackendError(f"LVM says nothing of volume group {self.name}")
        return found

    def autoextend(self) -> dict[str, str]:
        """At how many percent LVM's monitoring extends pools and snapshots, as lvm.conf(5) has it."""
        names = ("thin_pool_autoextend_threshold", "snapshot_autoextend_threshold")
        out = self._run("lvmconfig", "--type", "full", *(f"activation/{name}" for name in names), timeout=LOOK).out
        pairs = (line.strip().partition("=") for line in out.splitlines())
        return {name: value for name, _, value in pairs if name in names}

    def create_thin(self, pool: str, name: str, size: int, tags: Collection[str], *, active: bool) -> None:
        """A blank thin LV; LVM does not activate it by itself at boot (-ky)."""
        state = ["-ay", "-K"] if active else ["-an"]
        self._create(name, tags, "--virtualsize", f"{size}b", "--thinpool", pool, *state, "-Wn")

    def create_thick(self, name: str, size: int, tags: Collection[str], layout: Layout) -> None:
        """An LV of its own extents, active, holding what was there but no signature that udev would act on."""
        self._create(
            name, tags, "--size", f"{size}b", *layout.arguments, "-ay", "-K", "-Wy", "-Zy",
            pvs=layout.pvs,
        )  # fmt: skip

    def snapshot_thin(self, origin: str, name: str, tags: Collection[str]) -> None:
        """Shares all blocks with its origin; inactive."""
        self._run("lvcreate", "-y", "-s", "-ky", "-n", name, *_tags(tags), f"{self.name}/{origin}")

    def snapshot_thick(self, origin: str, name: str, size: int, tags: Collection[str], pvs: Sequence[str]) -> None:
        """A COW area of `size` bytes (LVM rounds up, and down to what the origin can ever need)."""
        where = f"{self.name}/{origin}"
        self._run("lvcreate", "-y", "-s", "-ky", "-L", f"{size}b", "-n", name, *_tags(tags), where, *pvs)

    def split_snapshot(self, name: str) -> None:
        """Part a thick snapshot from its origin: an LV that holds what the COW area held."""
        self._run("lvconvert", "-y", "--splitsnapshot", f"{self.name}/{name}")

    def extend(self, name: str, size: int, pvs: Sequence[str] = ()) -> None:
        self._run("lvextend", "-y", "--size", f"{size}b", f"{self.name}/{name}", *pvs)

    def remove(self, name: str) -> None:
        """Absent is success."""
        try:
            self._run("lvremove", "-y", f"{self.name}/{name}")
        except AbsentError:
            pass

    def rename(self, name: str, other: str) -> None:
        self._run("lvrename", self.name, name, other)

    def activate(self, name: str) -> None:
        """Also one with the skip flag; a thick snapshot brings its origin."""
        self._run("lvchange", "-y", "-ay", "-K", f"{self.name}/{name}")

    def deactivate(self, name: str) -> None:
        """`InUseError` while somebody has it, or a snapshot of it, open."""
        self._run("lvchange", "-y", "-an", f"{self.name}/{name}")

    def tag(self, name: str, add: Collection[str] = (), drop: Collection[str] = ()) -> None:
        self._run("lvchange", *_tags(add), *_tags(drop, "--deltag"), f"{self.name}/{name}")

    def permit(self, name: str, mode: str | None, add: Collection[str] = (), drop: Collection[str] = ()) -> None:
        """Tags, and a device that may be read (`r`) or written as well (`rw`), in one change."""
        permission = ["--permission", mode] if mode else []
        self._run("lvchange", "-y", *permission, *_tags(add), *_tags(drop, "--deltag"), f"{self.name}/{name}")

    def mark(self, tags: Collection[str]) -> None:
        """Tags of the group itself."""
        self._run("vgchange", *_tags(tags), self.name)

    def create_pool(self, name: str, size: int | None, tags: Collection[str], layout: Layout) -> None:
        """A thin pool of `size` bytes, or of 95 % of the group; its new blocks are zeroed before use."""
        amount = ["-l", "95%VG"] if size is None else ["-L", f"{size}b"]
        stripes = ["--stripes", str(layout.stripes)] if layout.stripes > 1 else []
        self._run(
            "lvcreate", "-y", "--type", "thin-pool", *amount, *stripes, "-Zy", "-n", name, *_tags(tags),
            self.name, *layout.pvs,
        )  # fmt: skip

    def fail_when_full(self, pool: str) -> None:
        """Writers get ENOSPC at once when the pool is full, instead of waiting for 60 s."""
        self._run("lvchange", "-y", "--errorwhenfull", "y", f"{self.name}/{pool}")

    def resume(self, name: str) -> None:
        """Let a device go on that a killed LVM left suspended."""
        self._run("lvchange", "-y", "--refresh", f"{self.name}/{name}")

    def _create(self, name: str, tags: Collection[str], *args: str, pvs: Sequence[str] = ()) -> None:
        self._run("lvcreate", "-y", "-ky", "-n", name, *args, *_tags(tags), self.name, *pvs)

    def _run(
        self,
        verb: str,
        *args: str,
        timeout: float = CHANGE,
        changes: bool = True,
        begun: command.Running | None = None,
    ) -> command.Result:
        """What `changes` nothing may outlive us without our locks.

        `begun` is the first attempt.
        """
        _refuse_others()
        for attempt in range(TRIES):
            if begun is not None and attempt == 0:
                result = begun.result()
            else:
                result = command.run(
                    "lvm", verb, *args, ok=ANY, pass_fds=self.locks, keep_locks=changes, timeout=timeout, grace=GRACE
                )
            passing = result.status in CRASHED or (result.status and re.search(_PASSING, result.err))
            if not passing or attempt + 1 == TRIES:
                break
            interrupt.pause(0.2 * 2**attempt)
        if result.status or "device-mapper driver" in result.err:
            raise failure(f"{verb} in volume group {self.name}", result)
        return result


def _refuse_others() -> None:
    if os.geteuid() != 0:
        raise AccessError("LVM works for root only", hint="sudo volctl …")


def _tags(tags: Collection[str], option: str = "--addtag") -> list[str]:
    return [word for tag in sorted(tags) for word in (option, tag)]


def failure(what: str, result: command.Result) -> VolctlError:
    """The error for what LVM said, of the kind that its words tell."""
    said = [line.strip() for line in result.err.splitlines() if line.strip()]
    said = [line for line in said if not line.startswith(("WARNING:", "Run `"))] or said
    message = f"{what} failed: {said[-1] if said else f'status {result.status}'}"
    details = {"stderr": result.err[-2000:], "status": result.status}
    for pattern, kind, hint in _KINDS:
        if match := next((line for line in said if re.search(pattern, line, re.IGNORECASE)), None):
            return kind(f"{what} failed: {match}", hint=hint, details=details)
    return BackendError(message, details=details)

"""The only module that starts programs.

`run("qemu-img", "info", path)` runs one program to its end in a process group of its own, with stdin
empty, the C locale, and the descriptors of our locks (`held`), so that a lock is free only when
the command *and* its children are gone. It hears signals and the deadline (`interrupt`), ends the
whole group, and waits until the group is empty. What it prints goes to memory (memfd_create(2)): no
thread of ours has to read it, and a grandchild that keeps it open holds up nobody.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from volctl import held, interrupt
from volctl.errors import AccessError, BackendError, MissingError
from volctl.records import mutable, record

if TYPE_CHECKING:
    from volctl.confine import Cage

confined = True
"""The configuration's `confine_qemu`: are the cages closed?"""

on_run: Callable[[str], None] | None = None
"""Told each command line before it runs, quoted for a shell: `--verbose` prints it."""

PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "losetup": "util-linux",
    "modprobe": "kmod",
    "lvm": "lvm2",
    "gpgv": "gpgv",
    "thin_check": "thin-provisioning-tools",
}
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath, "LVM_SUPPRESS_FD_WARNINGS": "1"}
TERM_GRACE = 2.0  # seconds between SIGTERM and SIGKILL
ROOM = 64 << 20  # bytes beyond what this process has, for its copy on the way to exec(2)
IN_FLIGHT = 250  # descriptors that one message may carry (SCM_MAX_FD is 253)
LEAVE = """
import os, sys
locks, *argv = sys.argv[1:]
close = [(os.POSIX_SPAWN_CLOSE, int(lock)) for lock in locks.split(",") if lock]
pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=close)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
"""  # keeps the locks until the program that must not have them is on its own
_groups: dict[int, float] = {}
"""Process groups of children, each with its grace."""


@record
class Result:
    """Exit status (negative: ended by that signal) and what was printed."""

    status: int
    out: str
    err: str


@record
class Limits:
    """What a child may use: memory in bytes (RLIMIT_DATA), processor time in seconds.

    Not address space: glibc reserves 128 MiB of it for each thread, so a limit there fails at random.
    """

    memory: int | None = None
    cpu: int | None = None


def find(program: str) -> str:
    """The absolute path of a program; `MissingError` names its package."""
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is None:
        package = PACKAGES.get(program, program)
        raise MissingError(f"the program {program} is not installed", hint=f"install the package {package}")
    return path


def run(
    program: str,
    *args: str | int,
    ok: Iterable[int] = (0,),
    pass_fds: Iterable[int] = (),
    on_output: Callable[[str], None] | None = None,
    limits: Limits | None = None,
    cage: Cage | None = None,
    keep_locks: bool = False,
    timeout: float | None = None,
    grace: float = TERM_GRACE,
) -> Result:
    """Run to the end. `BackendError` with the last line of stderr if the status is not in `ok`.

    `on_output` gets pieces of stdout as they come (they are then not in the result). `keep_locks` is
    for programs that close what they inherit, as LVM's do: the locks travel in their stdin (`_carrier`).
    `cage` is for programs that read what strangers wrote: all that they can reach.
    After `timeout` seconds the program is ended, which is a `BackendError`; `grace` is how long one
    that must be ended may take over it before it is killed.
    """
    argv = _told(program, args)
    with _caged(argv, limits, cage) as (prefix, fds, prepare):
        child = _start([*prefix, *argv], {*pass_fds, *held.locks, *fds}, on_output, prepare, keep_locks, grace=grace)
    return Running(child, program, tuple(ok), timeout, grace, wrapped=bool(prefix)).result()


def start(
    program: str,
    *args: str | int,
    ok: Iterable[int] = (0,),
    pass_fds: Iterable[int] = (),
    limits: Limits | None = None,
    cage: Cage | None = None,
    timeout: float | None = None,
    grace: float = TERM_GRACE,
) -> Running:
    """The same beside what goes on here: its `result` must be asked for, or it be ended."""
    argv = _told(program, args)
    with _caged(argv, limits, cage) as (prefix, fds, prepare):
        child = _start([*prefix, *argv], {*pass_fds, *held.locks, *fds}, None, prepare, grace=grace)
    return Running(child, program, tuple(ok), timeout, grace, wrapped=bool(prefix))


def _told(program: str, args: Iterable[str | int]) -> list[str]:
    argv = [find(program), *map(str, args)]
    if on_run is not None:
        import shlex

        on_run(shlex.join([program, *argv[1:]]))
    return argv


@contextmanager
def _caged(
    argv: list[str], limits: Limits | None, cage: Cage | None
) -> Iterator[tuple[Iterable[str], set[int], Callable[[], None] | None]]:
    """The words before a program's own, the descriptors it needs, and what its process does first."""
    with cage.around(argv[0], bubblewrap()) if cage and confined else nullcontext() as rules:

        def prepare() -> None:
            if limits:
                _limit(limits)
            if rules:
                rules.enter()

        prefix, fds = (rules.prefix, {*rules.fds}) if rules else ((), set())
        yield prefix, fds, prepare if limits or (rules and rules.enters) else None


@record
class Running:
    """A program that was started; `ok` are its good exit statuses, times are in seconds.

    `wrapped`: bubblewrap has it as its child, and tells its end by signal N as 128+N.
    """

    child: _Child
    program: str
    ok: tuple[int, ...]
    timeout: float | None
    grace: float
    wrapped: bool

    def result(self) -> Result:
        """Wait for its end. `BackendError` with the last line of its stderr if its status was not to be."""
        result = _wait(self.child, self.program, self.timeout, self.grace)
        if self.wrapped and result.status > 128:
            result = replace(result, status=128 - result.status)
        if result.status not in self.ok:
            raise failure(self.program, result)
        return result

    def end(self) -> None:
        """Nobody wants its result (any more)."""
        group = self.child.process.pid
        if group in _groups and _end(group, self.grace):
            _groups.pop(group, None)
            self.child.done.wait(TERM_GRACE)
            self.child.close()


def run_server(program: str, *args: str | int, timeout: float) -> None:
    """Start a program that daemonizes itself once it is ready, and lives on without our locks.

    They are held until it is ready, or has failed, also if this process is killed meanwhile.
    """
    argv = _told(program, args)
    leave = [sys.executable, "-I", "-S", "-c", LEAVE, ",".join(map(str, sorted(held.locks)))]
    result = _wait(_start([*leave, *argv], set(held.locks), None, None), program, timeout, TERM_GRACE)
    if result.status:
        raise failure(program, result)


@cache
def bubblewrap() -> str | None:
    """The path of bwrap where landlock is missing and bwrap may work (containers often forbid it)."""
    from volctl import confine

    if confine.abi() or (path := shutil.which("bwrap")) is None:
        return None
    words = confine.walls("bwrap", confine.Cage(), "/bin/true")
    return path if run(*words, "/bin/true", ok=range(-64, 256)).status == 0 else None


def failure(program: str, result: Result) -> BackendError:
    """The error that says how a program failed, in its own last words."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    said = lines[-1].strip() if lines else "it said nothing"
    ended = f"was ended by signal {-result.status}" if result.status < 0 else f"failed with status {result.status}"
    return BackendError(f"{program} {ended}: {said}", details={"stderr": result.err[-2000:], "status": result.status})


@mutable
class _Child:
    """A process of `sh`; `out` and `err` are the files in memory that it prints to."""

    process: Any
    done: threading.Event
    out: int
    err: int

    def said(self, file: int) -> str:
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def close(self) -> None:
        files, self.out, self.err = (self.out, self.err), -1, -1
        for file in files:
            if file >= 0:
                os.close(file)


def _start(
    argv: list[str],
    fds: set[int],
    on_output: Callable[[str], None] | None,
    prepare: Callable[[], None] | None,
    keep_locks: bool = False,
    *,
    grace: float = TERM_GRACE,
) -> _Child:
    import sh

    interrupt.check()
    interrupt.end_children, interrupt.kill_children = _end_all, _kill_all
    ours = os.getpid()
    stdin: Any = _carrier(fds) if keep_locks else os.open(os.devnull, os.O_RDONLY)
    passed = set() if keep_locks else fds
    child = _Child(None, threading.Event(), os.memfd_create("stdout"), os.memfd_create("stderr"))
    out: Any = {"_out": child.out}
    if on_output:
        out = {"_out": on_output, "_out_bufsize": 0, "_decode_errors": "replace"}  # 0: no character is split
    try:
        for fd in passed:
            os.set_inheritable(fd, True)
        child.process = sh.Command(argv[0])(
            *argv[1:],
            _bg=True,
            _bg_exc=False,
            _return_cmd=True,
            _new_group=True,
            _tty_out=False,
            _in=stdin,
            _err=child.err,
            _env=ENVIRONMENT | {"PATH": os.environ.get("PATH", os.defpath)},
            _cwd="/",
            _pass_fds=passed,
            _truncate_exc=False,
            _ok_code=list(range(256)),
            _preexec_fn=prepare,
            **out,
        )
    except (sh.ForkException, OSError) as error:
        child.close()
        raise AccessError(f"{argv[0]} cannot be started: {error}") from error
    finally:
        if os.getpid() != ours:
            os._exit(255)  # the child of sh, which ends there for no BaseException: it is no second volctl
        os.close(stdin)
    _groups[child.process.pid] = grace
    threading.Thread(target=_await, args=(child,), daemon=True).start()
    return child


def _carrier(fds: Iterable[int]) -> int:
    """A socket to be somebody's stdin. The descriptors are in flight in its queue (unix(7), SCM_RIGHTS), and so
    what they lock is locked until nobody has the socket, whatever else its holder closes."""
    import socket

    ours, theirs = socket.socketpair()
    with ours:
        locks = list(fds)
        for first in range(0, len(locks), IN_FLIGHT):
            socket.send_fds(ours, [b"."], locks[first : first + IN_FLIGHT])
    return theirs.detach()


def _await(child: _Child) -> None:
    """Wait for the end and for the last output: sh's `_done` comes before it, and up to a second late."""
    child.process.process.wait()
    child.done.set()


def _limit(limits: Limits) -> None:
    """In the child, which is still a copy of this process and must have room to get as far as exec(2)."""
    import resource

    if limits.memory is not None:
        with open("/proc/self/statm", "rb") as numbers:
            pages = int(numbers.read().split()[5])  # data and stacks, in pages (proc(5))
        memory = max(limits.memory, pages * resource.getpagesize() + ROOM)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if limits.cpu is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 1))  # SIGXCPU; at the hard one SIGKILL
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait(child: _Child, program: str, timeout: float | None, grace: float) -> Result:
    group, end = child.process.pid, time.monotonic() + (timeout or math.inf)
    try:
        while not child.done.wait(0.1):
            interrupt.check()
            if time.monotonic() > end:
                raise BackendError(f"{program} did not end within {timeout:g} s")
        interrupt.check()
    finally:
        if _end(group, grace):
            _groups.pop(group, None)
        said = child.said(child.out), child.said(child.err)
        child.close()
    return Result(child.process.process.exit_code, *said)


def children_left() -> bool:
    """Is there a child that the kernel would not let die? It still works, and holds our locks."""
    return any(_lives(group) for group in _groups)


def _end(group: int, grace: float) -> bool:
    """End what is left of a process group; True when nobody of it lives, False if the kernel will not let it."""
    for signum, patience in ((0, 0.0), (signal.SIGTERM, grace), (signal.SIGKILL, TERM_GRACE)):
        if not _lives(group):
            return True
        _signal(group, signum)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if not _lives(group):
                return True
            time.sleep(0.005)
    return not _lives(group)


def _lives(group: int) -> bool:
    """Does anybody of the group run? The dead whom nobody waits for (init of a container) do not count."""
    if not _signal(group, 0):
        return False
    states = (_state(pid) for pid in os.listdir("/proc") if pid.isdigit())
    return any(state not in ("Z", "X") for state, member in states if member == group)


def _state(pid: str) -> tuple[str, int]:
    """A process's state and process group, from /proc/PID/stat (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:  # it has a name of any bytes in it
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[2])


def _end_all() -> None:
    for group in tuple(_groups):
        _signal(group, signal.SIGTERM)


def _kill_all() -> None:
    for group, grace in tuple(_groups.items()):
        _end(group, grace)


def _signal(group: int, signum: int) -> bool:
    """False when nobody of the group is left."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    return True

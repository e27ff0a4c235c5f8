"""What a program that reads strangers' files may still do: landlock(7), seccomp(2), no_new_privs.

A `Cage` names the files that `qemu-img` is to read and to write. Inside, nothing else of the machine
can be opened but the system's programs and libraries (read only), no socket be made, no process be
started or signalled, and no rights be gained. Where the kernel has no landlock, bubblewrap does the
same if it is there and may. What neither can, or the processor is none that we know the system calls
of, that part is missing; `in_force` says what there is.

Landlock's rules are made before the fork, and entered after it: no process more, and less than 1 ms.
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from volctl.records import record

Path = str | os.PathLike[str]

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_REG, _REMOVE_FILE, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 8, 1 << 5, 1 << 13, 1 << 14, 1 << 15
_RIGHTS = (0, 13, 14, 15, 15, 16)  # how many of the file rights a kernel with this ABI knows
_TCP = 3  # bind and connect, since ABI 4
_SCOPES = 3  # abstract UNIX sockets and signals, since ABI 6
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_ASK_VERSION, _PATH_BENEATH = 1, 1

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl(2)
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store")
LOOKED_AT: tuple[Path, ...] = (
    "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/gnutls", "/etc/crypto-policies", "/sys/devices",
    "/dev/urandom",
)  # fmt: skip
"""What the loader, libnuma and gnutls read before `main`, and QEMU to know a block device."""


@record
class Cage:
    """The files a program gets, by path (also `/dev/fd/N`); of a directory, all that is beneath it."""

    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()

    @contextmanager
    def around(self, program: str, wrapper: str | None = None) -> Iterator[Rules]:
        """The rules for one start of `program` (an absolute path); `wrapper` is the path of bubblewrap, if needed."""
        if wrapper is not None:
            with _seccomp_file() as filter:
                yield Rules(enters=False, prefix=walls(wrapper, self, program, filter), fds=filter)
        else:
            ruleset = _ruleset(self, program) if abi() else None
            try:
                yield Rules(ruleset)
            finally:
                if ruleset is not None:
                    os.close(ruleset)


@record
class Rules:
    """For one start: words before the program's and descriptors that they name, or what `enter` does in the child."""

    ruleset: int | None = None
    enters: bool = True
    prefix: tuple[str, ...] = ()
    fds: tuple[int, ...] = ()

    def enter(self) -> None:
        """In the child, just before it becomes the program. OSError if the kernel will not."""
        if not self.enters:
            return
        _prctl(_NO_NEW_PRIVS, 1)
        if self.ruleset is not None:
            _allow(self.ruleset, "/proc/self", _READ_FILE | _READ_DIR)
            _syscall(_RESTRICT_SELF, self.ruleset, 0)
        if (program := _seccomp_program()) is not None:
            _prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(program))


def walls(wrapper: str, cage: Cage, program: str, filter: tuple[int, ...] = ()) -> tuple[str, ...]:
    """bwrap(1) with the same in it. A `/dev/fd/N` needs no door: it leads to the file wherever that lies.

    Nor does a program of the system's: it may be a link there, and bubblewrap 0.11 mounts on no link.
    """
    system = tuple(f"{path}/" for path in SYSTEM)
    programs = [path for path in (program, os.path.realpath(program)) if not path.startswith(system)]
    words = [wrapper, "--unshare-net", "--unshare-ipc", "--unshare-pid", "--proc", "/proc", "--dev", "/dev"]
    closed = [("--ro-bind-try", os.fspath(path)) for path in (*SYSTEM, *programs, *LOOKED_AT, *cage.reads)]
    opened = [("--dev-bind-try", os.fspath(path)) for path in cage.writes]
    for how, path in (*closed, *opened):
        if not path.startswith("/dev/"):
            words += [how, path, path]
        elif not path.startswith("/dev/fd/"):
            words += ["--dev-bind-try", path, path]
    for number in filter:
        words += ["--seccomp", str(number)]
    return (*words, "--")


@contextmanager
def _seccomp_file() -> Iterator[tuple[int, ...]]:
    """The filter in a file without a name, as bubblewrap wants it."""
    if not (code := _seccomp_code()):
        yield ()
        return
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(code)
        file.seek(0)
        yield (file.fileno(),)


def in_force(wrapper: str | None = None) -> list[str]:
    """What confines qemu-img here, for a person to read; `wrapper` as for `Cage.around`."""
    found = [f"landlock (ABI {abi()}): only its source and target"] if abi() else []
    if wrapper is not None:
        found = ["bubblewrap: only its source and target, no network"]
    if _seccomp_program() is not None:
        found.append("seccomp: no sockets, no processes")
    return [*found, "no new privileges", "limits of memory"]


@cache
def abi() -> int:
    """The version of landlock's interface; 0 without landlock, or where a container forbids it."""
    try:
        return _syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


def _ruleset(cage: Cage, program: str) -> int:
    rights = (1 << _RIGHTS[min(abi(), 5)]) - 1
    attributes = struct.pack("<QQQ", rights, _TCP if abi() >= 4 else 0, _SCOPES if abi() >= 6 else 0)
    size = 8 if abi() < 4 else 16 if abi() < 6 else 24
    ruleset = _syscall(_CREATE_RULESET, attributes, size, 0)
    look = _EXECUTE | _READ_FILE | _READ_DIR
    for name in (*SYSTEM, program):
        _allow(ruleset, name, look)
    for path in (*LOOKED_AT, *cage.reads):
        _allow(ruleset, path, _READ_FILE | _READ_DIR | _IOCTL_DEV)
    _allow(ruleset, os.devnull, _READ_FILE | _WRITE_FILE)
    for path in cage.writes:
        change = _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE | _REFER
        _allow(ruleset, path, _READ_FILE | _READ_DIR | _IOCTL_DEV | change)
    return ruleset


def _allow(ruleset: int, path: Path, rights: int) -> None:
    """Nothing of that name is nothing to allow."""
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(at).st_mode):
            rights &= _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
        rights &= (1 << _RIGHTS[min(abi(), 5)]) - 1
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, at), 0)
    finally:
        os.close(at)


# -- seccomp: a program of the classic BPF, linux/filter.h

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _FAIL = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCH, _FLAGS = 0, 4, 16  # offsets in struct seccomp_data; the last is the first argument's low half
_CLONE_THREAD = 0x10000
_X32 = 0x40000000


@record
class _Calls:
    """System call numbers of one architecture. `refused`: socket, fork, vfork, ptrace, unshare, setns, mount …"""

    audit: int
    clone: int
    refused: tuple[int, ...]


_CLONE3, _IO_URING_SETUP = 435, 425
_CALLS = {
    # socket, fork, vfork, ptrace, mount, unshare, setns, process_vm_readv, process_vm_writev, bpf
    "x86_64": _Calls(0xC000003E, 56, (41, 57, 58, 101, 165, 272, 308, 310, 311, 321)),
    # socket, ptrace, mount, unshare, setns, process_vm_readv, process_vm_writev, bpf
    "aarch64": _Calls(0xC00000B7, 220, (198, 117, 40, 97, 268, 270, 271, 280)),
}


class _Program(ctypes.Structure):
    """struct sock_fprog; `code` keeps the instructions alive."""

    _fields_ = (("count", ctypes.c_ushort), ("filter", ctypes.c_char_p))


@cache
def _seccomp_program() -> _Program | None:
    code = _seccomp_code()
    return _Program(len(code) // 8, code) if code else None


def _seccomp_code() -> bytes:
    """Empty for an architecture whose system calls are not known here."""
    calls = _CALLS.get(platform.machine())
    return b"".join(_instructions(calls)) if calls and struct.calcsize("P") == 8 else b""


def _instructions(calls: _Calls) -> Iterator[bytes]:
    """Threads may be made (`clone` says so in its flags; `clone3` hides them, and the C library then
    takes `clone`), processes and sockets not."""
    yield _op(_LOAD, _ARCH)
    yield _op(_EQUAL, calls.audit, true=1)
    yield _op(_RETURN, _KILL)
    yield _op(_LOAD, _NUMBER)
    yield from _refuse_if(_AT_LEAST, _X32, _ENOSYS)
    for number in (_CLONE3, _IO_URING_SETUP):
        yield from _refuse_if(_EQUAL, number, _ENOSYS)
    for number in calls.refused:
        yield from _refuse_if(_EQUAL, number, _EPERM)
    yield _op(_EQUAL, calls.clone, true=1)
    yield _op(_RETURN, _ALLOW)
    yield _op(_LOAD, _FLAGS)
    yield _op(_ANY_BIT, _CLONE_THREAD, true=1)
    yield _op(_RETURN, _FAIL | _EPERM)
    yield _op(_RETURN, _ALLOW)


def _refuse_if(test: int, value: int, errno: int) -> Iterable[bytes]:
    return _op(test, value, false=1), _op(_RETURN, _FAIL | errno)


def _op(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    """struct sock_filter; the jumps are over so many instructions."""
    return struct.pack("<HBBI", code, true, false, value)


# -- the kernel


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *args: object) -> int:
    return _checked(_libc().syscall(ctypes.c_long(number), *map(_word, args)))


def _prctl(option: int, *args: int) -> None:
    words = [ctypes.c_ulong(arg) for arg in (*args, 0, 0, 0, 0)[:4]]
    _checked(_libc().prctl(ctypes.c_int(option), *words))


def _word(arg: object) -> object:
    return ctypes.c_long(arg) if isinstance(arg, int) else arg


def _checked(result: int) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result

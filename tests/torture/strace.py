"""strace(1) as a tool of sabotage: the Nth call of one kind fails, or its caller is killed before it.

`when=N` counts for each system call and each thread of its own, so a point is (who, call, N).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from tests.engine.crash import Ended, Rig
from tests.torture.core import UNCONFINED

CALLS = (
    *("fsync", "fdatasync", "write", "pwrite64", "copy_file_range", "ftruncate", "fallocate"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlinkat", "unlink", "unlinkat"),
    *("mkdir", "mkdirat", "ioctl", "execve"),
)
VOLCTL, QEMU = "volctl", "qemu-img"
LINE = re.compile(r"^(?:(\d+) +)?(\w+)\(", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Point:
    """The `number`th call of `call` by `who`, and what happens there: `signal=KILL`, `error=EIO` …"""

    who: str
    call: str
    number: int
    action: str

    def __str__(self) -> str:
        return f"{self.action} at {self.call} {self.number} of {self.who}"

    @property
    def expression(self) -> str:
        return f"inject={self.call}:{self.action}:when={self.number}"


def traced(rig: Rig, words: list[str], who: str, expression: str) -> tuple[Ended, str]:
    """Run one command under strace, or its qemu-img; how it ended, and strace's log."""
    log = rig.root.with_name(rig.root.name + ".strace")
    try:
        ended = _command(rig, words, expression, log) if who == VOLCTL else _qemu(rig, words, expression, log)
        return ended, log.read_text() if log.exists() else ""
    finally:
        log.unlink(missing_ok=True)


def _command(rig: Rig, words: list[str], expression: str, log: Path) -> Ended:
    gate = rig.root.with_name(rig.root.name + ".gate")
    os.mkfifo(gate)
    try:
        pid = rig.start(*words, wait=str(gate))
        tracer = subprocess.Popen(["strace", "-p", str(pid), "-o", str(log), "-q", "-e", expression])
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            assert tracer.poll() is None, "strace has ended"
            time.sleep(0.001)
        os.close(os.open(gate, os.O_WRONLY))
        ended = rig.join(pid)
        tracer.wait(300)  # its main thread is all it sees; what that starts is `QEMU`'s
        return ended
    finally:
        gate.unlink()


def _qemu(rig: Rig, words: list[str], expression: str, log: Path) -> Ended:
    """The command's own PATH begins with a qemu-img that is strace of the real one, which no cage would let it be."""
    rig.configure(UNCONFINED)
    real = shutil.which("qemu-img")
    programs = rig.root.with_name(rig.root.name + ".bin")
    programs.mkdir()
    try:
        script = programs / "qemu-img"
        script.write_text(f'#!/bin/sh\nexec strace -o {log} -A -q -f -e {expression} {real} "$@"\n')
        script.chmod(0o755)
        return replace(rig, path=f"{programs}:{os.environ['PATH']}").run(*words)
    finally:
        shutil.rmtree(programs)


def count(rig: Rig, words: list[str], who: str) -> dict[str, int]:
    """How often the busiest thread makes each call while nobody disturbs it: the points there are."""
    ended, log = traced(rig, words, who, f"trace={','.join(CALLS)}")
    assert ended.status == 0, ended.err
    made = Counter((match[1], match[2]) for match in LINE.finditer(log))
    return {call: max((n for (_, name), n in made.items() if name == call), default=0) for call in CALLS}


def happened(point: Point, log: str) -> bool:
    return "(INJECTED)" in log or ("signal=KILL" in point.action and "killed by SIGKILL" in log)

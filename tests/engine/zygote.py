"""A warm process that forks commands of volctl, lets them die where it is told, and says how they ended.

One JSON line in, one out. `{"start": {…}}` forks and answers `{"pid": N}`; `{"join": N}` waits for it
and answers how it ended. A command dies at its Nth point: the instants that the store's probe names,
and, with `files`, each time it makes, renames, cuts, locks or removes a file, just before.
SIGUSR1 tells a command that its time is out.
Run as a program of its own so that a fork meets no threads of the test runner.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import volctl.cli
import volctl.cli.app
from tests.engine.inject import inject
from volctl import command, interrupt
from volctl.db import store

Json = dict[str, Any]
FILE_EVENTS = {"os.remove", "os.rename", "os.truncate", "os.mkdir", "os.link", "fcntl.flock"}
NOT_OURS = {"calls", "fail"}  # the fake backend's own book-keeping
EXPIRE = signal.SIGUSR1
SOON = 0.08  # seconds; an LVM call takes 0.1 to 1 where the processor is emulated
Outcome = tuple[int, list[str], str, str, float, int]


@dataclass(slots=True)
class Points:
    """Counts what is passed, and dies where it was told; or signals itself, or is out of time ("expire").

    Where is a point's name, the first time it is passed, or its number as a text.
    """

    pipe: int
    die_at: int | None
    signals: dict[str, Any]
    count: int = 0

    def __call__(self, name: str) -> None:
        if self._passed(name):
            os.kill(os.getpid(), signal.SIGKILL)
        if (what := self.signals.pop(name, self.signals.pop(str(self.count), None))) == "expire":
            expire()
        elif what is not None:
            os.kill(os.getpid(), what)

    def soon(self, name: str) -> None:
        """A point that lies a while after this call, later the later it comes: in a program that begins now."""
        if self._passed(name):
            pause = SOON * (1 + self.count % 4)
            threading.Timer(pause, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def _passed(self, name: str) -> bool:
        """Is this where to die?"""
        self.count += 1
        os.write(self.pipe, f"{name}\n".encode())
        return self.count == self.die_at


def expire() -> None:
    interrupt._timeout, interrupt._deadline = 0.0, time.monotonic()


@dataclass(slots=True)
class Command:
    points: int
    out: IO[bytes]
    err: IO[bytes]


def listen_to_files(passed: Points) -> None:
    """A point before each change of a file; audit events come just before what they tell of."""

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS:
            passed(f"{event} {_name(args[0])}")
        elif event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT and _name(args[0]) not in NOT_OURS:
            passed(f"create {_name(args[0])}")

    sys.addaudithook(hear)


def listen_to_programs(passed: Points) -> None:
    """A point before each program, and one while it runs: it goes on, with our locks."""

    def hear(line: str) -> None:
        passed(f"start {line}")
        passed.soon(f"run {line}")

    command.on_run = hear


def _name(path: object) -> str:
    return os.path.basename(os.fsdecode(path)) if isinstance(path, str | bytes) else ""


def _file() -> IO[bytes]:
    return open(os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC), "r+b")


def start(order: Json) -> tuple[int, Command]:
    reader, writer = os.pipe()
    command = Command(reader, _file(), _file())
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        child(order, writer, command)
    os.close(writer)
    return pid, command


def child(order: Json, writer: int, command: Command) -> NoReturn:
    os.dup2(command.out.fileno(), 1)
    os.dup2(command.err.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["env"])
    signal.signal(EXPIRE, lambda number, frame: expire())
    if order.get("group"):
        os.setpgid(0, 0)
    if "wait" in order:
        os.close(os.open(order["wait"], os.O_RDONLY))  # whoever traces it lets it go
        os.close(writer)
    else:
        listen(order, writer)
    status = volctl.cli.main(order["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def listen(order: Json, writer: int) -> None:
    """Tell the points, and do at them what was ordered."""
    passed = Points(writer, order.get("die_at"), order.get("signals", {}))
    store.probe = passed
    for change in order.get("inject", ()):
        inject(change)
    if order.get("files"):
        listen_to_files(passed)
    if order.get("programs"):
        listen_to_programs(passed)


def join(pid: int, command: Command) -> Outcome:
    """How it ended (negative: by that signal), the points it passed, what it said, what it and its children used."""
    with os.fdopen(command.points) as pipe:
        points = pipe.read().splitlines()
    _, status, used = os.wait4(pid, 0)
    said = []
    for file in (command.out, command.err):
        file.seek(0)
        said.append(file.read().decode())
        file.close()
    seconds = used.ru_utime + used.ru_stime
    return os.waitstatus_to_exitcode(status), points, said[0], said[1], seconds, used.ru_maxrss * 1024


def warm_up(modules: Sequence[str] = ()) -> None:
    """Import what commands import when they run, and these (`package.*`: all of it): the first would pay for all."""
    for module in modules:
        for name in _below(module.removesuffix(".*")) if module.endswith(".*") else [module]:
            importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="volctl-warm-") as scratch:
        config = Path(scratch, "config.toml")
        config.write_text(f'[[backend]]\nname = "a"\nkind = "fake"\ndirectory = "{scratch}/pool"\n')
        env = {"VOLCTL_STATE_DIR": f"{scratch}/state", "VOLCTL_CONFIG": str(config)}
        os.environ.update(env)
        words = ("backend init a -y", "create v --size 1M -q", "snapshot create v s -q", "delete v -y --cascade -q")
        for line in (*words, "quota show --json", "image list --json", "flow list --json"):
            volctl.cli.main(line.split())
        for key in env:
            del os.environ[key]


def _below(package: str) -> list[str]:
    """Every module of a package but its program."""
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    return [module.name for module in found if not module.name.endswith("__main__")]


def quiet(act: Callable[[], None]) -> None:
    """Do it with nothing on stdout, which carries the answers."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    act()
    sys.stdout.flush()
    os.dup2(kept, 1)
    os.close(kept)


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1) may have run the tests
    sys.dont_write_bytecode = True  # a module's first import would make files that the second run does not
    quiet(lambda: warm_up(sys.argv[1:]))
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of ours
    running: dict[int, Command] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid, command = start(order["start"])
            running[pid] = command
            answer: object = {"pid": pid}
        else:
            answer = join(order["join"], running.pop(order["join"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

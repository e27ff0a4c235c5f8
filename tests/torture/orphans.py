"""Children that outlive their command or hang, terminals that go, standard output that takes nothing."""

from __future__ import annotations

import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tests.conftest import REPO
from tests.engine.crash import KILLED, Ended, Rig
from tests.torture.core import PATIENCE, UNCONFINED, Budget, Tally, another, quiet, worlds
from tests.torture.verbs import UNREADABLE, VERBS, outcome

OVERTIME = 60.0  # seconds a command may take beyond its --timeout: 10 (SPEC, section 11), but this machine may be busy
STUBBORN = {
    "sleeps": "sleep 600 & wait",
    "is deaf to SIGTERM": "trap '' TERM; sleep 600; sleep 600",
    "is stopped": "kill -STOP $$",
    "has deaf children": "(trap '' TERM HUP INT; sleep 600) & (trap '' TERM; sleep 600) & wait",
}


def run(kind: str, budget: Budget) -> Tally:
    """One scenario after another, in turn, each with delays of its own."""
    tally = Tally()
    with worlds(kind) as world:
        while not budget.spent(tally):
            name, scenario = list(SCENARIOS.items())[tally.runs % len(SCENARIOS)]
            rng = budget.random(f"orphans {tally.runs}")
            with another(world) as rig:
                tally.add(name, scenario(rig, rng))
    return tally


@contextmanager
def slow(rig: Rig, script: str) -> Iterator[Rig]:
    """Its qemu-img does what it should, makes the file `begun` beside the world, and then what `script` says."""
    programs = Path(f"{rig.root}.bin")
    programs.mkdir()
    rig.configure(UNCONFINED)
    begun, real = programs / "begun", shutil.which("qemu-img")
    try:
        path = programs / "qemu-img"
        path.write_text(
            f'#!/bin/bash\ntest "$1" = convert || exec {real} "$@"\n{real} "$@" || exit\ntouch {begun}\n{script}\n'
        )
        path.chmod(0o755)
        yield replace(rig, path=f"{programs}:{os.environ['PATH']}")
    finally:
        shutil.rmtree(programs)


def copying(rig: Rig, *words: str) -> int:
    """A create whose qemu-img is at work."""
    pid = rig.start(*rig.words(VERBS["create-image"].argv), *words)
    begun, end = Path(f"{rig.root}.bin", "begun"), time.monotonic() + PATIENCE
    while not begun.exists():
        assert time.monotonic() < end, "qemu-img did not begin"
        time.sleep(0.005)
    return pid


def parent_killed(rig: Rig, rng: random.Random) -> list[str]:
    """The lock stays with the child: others say so until it ends, then all is settled."""
    with slow(rig, "sleep 600 & echo $! >$0.pid; wait") as rig:
        pid = copying(rig)
        os.kill(pid, signal.SIGKILL)
        found = [] if rig.join(pid).status == KILLED else ["the parent was not killed"]
        for line in ("delete v -y", "create v --if-absent --size 3M", "extend v 5M"):
            ended = rig.run(*line.split(), "--lock-timeout", "50ms")
            if ended.status != 10:
                found.append(f"{line}, while the child lives: exit {ended.status}, not 10: {ended.err}")
        if (rig.volume("v") or {}).get("status") not in ("creating", "downloading"):
            found.append("it was settled while its child lives")
        time.sleep(rng.uniform(0, 0.1))
        os.kill(int(Path(f"{rig.root}.bin", "qemu-img.pid").read_text()), signal.SIGKILL)
        return found + _after(rig, "create-image")


def hangs(rig: Rig, rng: random.Random) -> list[str]:
    """A child that never ends: within the command's timeout and ten seconds all are gone, and nothing is left."""
    how = rng.choice(list(STUBBORN))
    with slow(rig, STUBBORN[how]) as rig:
        timeout = rng.uniform(1, 3)
        begun = time.monotonic()
        ended = rig.run(*rig.words(VERBS["create-image"].argv), "--timeout", f"{timeout * 1000:.0f}ms")
        took = time.monotonic() - begun
        found = [f"{how}: exit {ended.status}, not 124: {ended.err}"] if ended.status != 124 else []
        if took > timeout + OVERTIME:
            found.append(f"{how}: it took {took:.1f} s, the timeout was {timeout:.1f} s")
        return found + _after(rig, "create-image", ended)


def interrupted(rig: Rig, rng: random.Random) -> list[str]:
    """The same, ended by signals, one or two."""
    how, number = rng.choice(list(STUBBORN)), rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    with slow(rig, STUBBORN[how]) as rig:
        pid, begun = copying(rig), time.monotonic()
        os.kill(pid, number)
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 0.3))
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        ended = rig.join(pid)
        took = time.monotonic() - begun
        found = [f"{how}: exit {ended.status}, not {128 + number}"] if ended.status != 128 + number else []
        if took > OVERTIME:
            found.append(f"{how}: it took {took:.1f} s")
        return found + _after(rig, "create-image", ended)


def _after(rig: Rig, verb: str, ended: Ended | None = None) -> list[str]:
    found = [] if quiet(rig.root) else ["a process lives on"]
    return found + outcome(rig, VERBS[verb], ended)


# -- where its output goes: whole processes


def _process(rig: Rig, words: list[str], redirect: str) -> subprocess.Popen[str]:
    env = {
        "VOLCTL_STATE_DIR": str(rig.state),
        "VOLCTL_CONFIG": str(rig.root / "config.toml"),
        "PYTHONPATH": str(REPO),
        "PATH": os.environ["PATH"],
    }
    line = f'exec "$@" {redirect}'
    argv = ["bash", "-c", line, "bash", sys.executable, "-m", "volctl", *words]
    return subprocess.Popen(argv, env=env, cwd=rig.root, stderr=subprocess.PIPE, text=True)


def unheard(rig: Rig, rng: random.Random) -> list[str]:
    """What a command did does not depend on who takes its result."""
    redirect, wanted = rng.choice(
        ((">/dev/full", 1), (">&-", 1), ("> >(true)", 0), (">/dev/full 2>&1", 1), (">&- 2>&-", 1))
    )
    name = rng.choice(["create", "create-image", "create-volume", "extend", "snapshot", "revert"])
    command = _process(rig, [*rig.words(VERBS[name].argv), "--json"], redirect)
    _, err = command.communicate(timeout=PATIENCE)
    found = [f"{name} {redirect}: Traceback: {err}"] if "Traceback" in err else []
    if command.returncode not in (wanted, 0 if "true" in redirect else wanted):
        found.append(f"{name} {redirect}: exit {command.returncode}, not {wanted}: {err}")
    found += outcome(rig, VERBS[name], Ended(command.returncode, [], "", UNREADABLE))
    return found if VERBS[name].done(rig) else [*found, f"{name} {redirect}: it was not done"]


def hung_up(rig: Rig, rng: random.Random) -> list[str]:
    """The terminal goes while it works: a hang-up ends and undoes it; under nohup it goes on."""
    name, nohup = rng.choice(["create-image", "create-volume", "delete", "extend"]), rng.random() < 0.5
    words = [sys.executable, "-m", "volctl", *rig.words(VERBS[name].argv)]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # it is inherited
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"VOLCTL_STATE_DIR": str(rig.state), "VOLCTL_CONFIG": str(rig.root / "config.toml")}
        os.environ["PYTHONPATH"] = str(REPO)
        os.chdir(rig.root)
        os.execvp(words[0], words)
    signal.signal(signal.SIGHUP, before)
    time.sleep(rng.uniform(0.02, 0.6))
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    allowed = {0, 1} if nohup else {0, 1, 129, -signal.SIGHUP}
    found = [] if status in allowed else [f"{name}{', nohup' * nohup}: exit {status}"]
    found += _after(rig, name, Ended(status, [], "", UNREADABLE))
    return found if VERBS[name].done(rig) or not nohup else [*found, f"{name}, nohup: it was not done"]


SCENARIOS: dict[str, Callable[[Rig, random.Random], list[str]]] = {
    "a killed parent's child": parent_killed,
    "a child that hangs": hangs,
    "a child that hangs, and a signal": interrupted,
    "nobody takes the result": unheard,
    "the terminal goes": hung_up,
}

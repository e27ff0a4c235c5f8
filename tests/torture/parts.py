"""The parts of the torture, and the lines that they have in the table."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.conftest import REPO
from tests.torture import full, kills, machine, matrix, mix, orphans, planted, syscalls
from tests.torture.core import Budget, Tally
from tests.torture.report import Line

Run = Callable[[str, Budget], Tally]


@dataclass(frozen=True, slots=True)
class Part:
    """One way to hurt volctl. `weight` is its share of the time, `cases` the runs that its line in the table has."""

    name: str
    what: str
    run: Run
    backends: tuple[str, ...]
    weight: float = 1.0
    cases: int | None = None
    needs_root: bool = False
    on_request: bool = False
    """Only with `--only`: it takes a virtual machine, or minutes whatever it is given."""

    def line(self, kind: str) -> Line:
        return Line(self.what, kind, f"scripts/torture --only {self.name} --backend {kind}")


def suite(*words: str) -> Run:
    """Tests that are a torture of their own, counted."""

    def run(kind: str, budget: Budget) -> Tally:
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
        done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
        counted = {
            what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)
        }
        tally = Tally(runs=sum(counted.values()))
        if done.returncode:
            tally.wrong += [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            tally.wrong = tally.wrong or [f"pytest ended with {done.returncode}"]
        return tally

    return run


HOSTILE = ("tests/cli/test_attacks.py", "tests/unit/test_gate_fuzz.py", "tests/unit/test_gate.py")
FILES = ("loop", "qcow2")
ALL = ("caching", "loop", "reflink", "qcow2")
PARTS = (
    Part(
        "matrix",
        "kill -9 at every transaction, outside action and file event",
        matrix.run,
        ("fake", "loop", "qcow2"),
        2,
    ),
    Part(
        "syscalls",
        "each changing system call: killed before it, or ENOSPC, EDQUOT, EIO, EINTR",
        syscalls.run,
        ("loop", "reflink", "qcow2"),
        4,
        needs_root=True,
    ),
    Part("kills", "killed or interrupted at a random time, and again while settling", kills.run, ALL, 2, 500),
    Part("mix", "commands of sixteen processes at once, some killed, against a model", mix.run, ALL, 2),
    Part("full", "full disks: blocks, inodes, at any moment", full.run, FILES, 3, needs_root=True),
    Part("machine", "steps of a state machine over the service, with deaths and faults", machine.run, ("fake",), 2),
    Part("orphans", "children that outlive or hang, terminals that go, results nobody takes", orphans.run, ("loop",)),
    Part("creates", "concurrent creates, clones, deletes (tests)", suite("tests/cli/test_concurrency.py"), ("loop",)),
    Part("images", "hostile images and mutated headers (tests)", suite(*HOSTILE), ("any",)),
    Part("fetch", "servers that misbehave (tests)", suite("tests/flows/test_fetch_table.py"), ("any",)),
    Part("rebuild", "a lost database made again (tests)", suite("tests/cli/test_rebuild.py"), ("any",)),
    Part("planted", "mistakes planted on purpose", planted.run, ("any",), on_request=True),
    Part(
        "powercuts",
        "power cuts in a virtual machine (tests)",
        suite("tests/system/test_powercut_lvm.py"),
        ("lvm",),
        on_request=True,
    ),
    Part(
        "vm",
        "real LVM in a virtual machine: kills, full pools, broken disks (tests)",
        suite("tests/system/test_vm.py"),
        ("lvm",),
        on_request=True,
    ),
)
LINES = [part.line(kind) for part in PARTS for kind in part.backends]

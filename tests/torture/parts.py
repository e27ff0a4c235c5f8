"""The parts of the torture, and the lines that they have in the table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

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


def suite(*words: str, cases: str = "", **always: str) -> Run:
    """Tests that are a torture of their own; counted are they, or what they say they did.

    `cases` is the environment variable that tells them how much; `always` are others.
    """

    def run(kind: str, budget: Budget) -> Tally:
        with tempfile.TemporaryDirectory() as directory:
            told = Path(directory, "told.xml")
            argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={told}", *XML, *words]
            env = {
                **os.environ,
                **always,
                "VOLCTL_SEED": str(budget.seed),
                **({cases: str(budget.cases)} if cases and budget.cases is not None else {}),
            }
            done = subprocess.run(argv, cwd=REPO, env=env, capture_output=True, text=True, check=False)
            report = ElementTree.parse(told)
            tally = counted(report.iter("property"))
            tally.wrong += [sentence for case in report.iter("testcase") for sentence in failures(case)]
        tests = re.findall(r"(\d+) (?:passed|failed|error|skipped)", done.stdout)
        tally.runs = tally.runs or sum(map(int, tests))
        if done.returncode:
            tally.wrong = tally.wrong or [f"pytest ended with {done.returncode}"]
            print(done.stdout)
        return tally

    return run


def boots(which: str, only: str = "", cases: str = "", **always: str) -> Run:
    """Those of the guest's suite, by pytest's -k, two at a time; of their tests `only` some, by -k as well."""
    words = ("tests/system/test_vm.py", "-n2", "-k", f"root_suite and {which}")
    return suite(*words, cases=cases, VOLCTL_GUEST=only, **always)


def failures(case: ElementTree.Element) -> list[str]:
    """The name of a test that failed; of a boot, the names of those that failed in the guest."""
    failed = [found for kind in ("failure", "error") for found in case.findall(kind)]
    text = "\n".join(found.text or "" for found in failed)
    within: list[str] = re.findall(r"^(?:E +)?(?:FAILED|ERROR) (tests/\S+)", text, re.MULTILINE)
    return within or [f"{case.get('classname')}.{case.get('name')}" for _ in failed]


def counted(told: Iterable[ElementTree.Element]) -> Tally:
    """Properties `counted` have `RUNS TOTAL WHAT`, `noted` have `TIMES WHAT`; those of the same are added up."""
    tally, sums = Tally(), dict[str, tuple[int, int]]()
    for found in told:
        if found.get("name") == "counted":
            *numbers, what = found.get("value", "").split(" ", 2)
            before = sums.get(what, (0, 0))
            sums[what] = before[0] + int(numbers[0]), before[1] + int(numbers[1])
        elif found.get("name") == "noted":
            times, what = found.get("value", "").split(" ", 1)
            tally.note(what, int(times))
    for what, (runs, total) in sums.items():
        tally.runs += runs
        tally.total = (tally.total or 0) + total
        if len(sums) > 1:
            tally.told.append(f"{runs} of {total} {what}")
    return tally


XML = ("-o", "junit_family=xunit1")  # the other has no properties of tests
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
        "create-syscalls",
        "each changing system call of a create from an image: killed before it, or ENOSPC, EDQUOT, EIO, EINTR",
        syscalls.of_a_create,
        ("loop", "reflink", "qcow2"),
        4,
        needs_root=True,
    ),
    Part(
        "syscalls",
        "each changing system call of the other verbs: the same",
        syscalls.of_the_others,
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
    Part(
        "rebuild",
        "a lost database made again, of random populations",
        suite("tests/cli/test_rebuild.py", "-k", "random_populations", cases="VOLCTL_POPULATIONS"),
        ("any",),
        cases=100,
    ),
    Part(
        "lvm-rebuild",
        "a lost database made again, of random populations",
        boots("rebuild", cases="VOLCTL_POPULATIONS"),
        ("lvm",),
        cases=100,
        on_request=True,
    ),
    Part(
        "steps",
        "kill -9 at every step of every backend's operations, and snapshots deleted in every order (tests)",
        suite("tests/backends", "tests/engine", "tests/flows/test_attach.py", VOLCTL_EVERY="1"),
        ("any",),
    ),
    Part("planted", "mistakes planted on purpose", planted.run, ("any",), on_request=True),
    Part(
        "powercuts",
        "power cuts in a virtual machine",
        suite("tests/system/test_powercut_lvm.py", cases="VOLCTL_POWER_CUTS"),
        ("lvm",),
        cases=300,
        on_request=True,
    ),
    Part(
        "lvm-kills",
        "kill -9 at commits, outside actions and programs on real LVM, in a virtual machine",
        boots("kills", "any_point or settled_by", VOLCTL_EVERY="1"),
        ("lvm",),
        on_request=True,
    ),
    Part(
        "lvm-doctor",
        "kill -9 of doctor --fix at the same, in a virtual machine",
        boots("kills", "killed_doctor", VOLCTL_EVERY="1"),
        ("lvm",),
        on_request=True,
    ),
    Part(
        "lvm-random",
        "killed or interrupted at a random time, and again while settling",
        boots("kills", "any_time", cases="VOLCTL_RANDOM_KILLS"),
        ("lvm",),
        cases=250,
        on_request=True,
    ),
    Part(
        "replay",
        "every write logged, replayed to a flush; quotas of the file system (in a virtual machine)",
        boots("files", cases="VOLCTL_REPLAYS"),
        ("loop",),
        cases=100,
        on_request=True,
    ),
    Part(
        "vm",
        "real LVM in a virtual machine: full pools, broken disks, holders, crowds (tests)",
        boots("not (kills or files or rebuild)"),
        ("lvm",),
        on_request=True,
    ),
)
LINES = [part.line(kind) for part in PARTS for kind in part.backends]

"""Three mistakes put into a copy of volctl on purpose: the harness must catch each, and says where and how fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO
from tests.torture.core import Budget, Tally

COPIED = ("volctl", "backends", "tests", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Plant:
    """In `file`, `old` (there once) becomes `new`; the part that shall catch it, and on which backend."""

    what: str
    file: str
    old: str
    new: str
    part: str
    backend: str


PLANTS = (
    Plant(
        "an undo that forgets the file",
        "volctl/flows/manager.py",
        "        run.env.backends.get(run.state.backend).delete(run.state.object)\n",
        "        return\n",
        "matrix",
        "fake",
    ),
    Plant(
        "a journal that is committed apart from the rows",
        "volctl/engine/run.py",
        "                self._record(tx, run, pending)\n                run.save(tx, journal.DONE)\n",
        "                self._record(tx, run, pending)\n            with self.store.write() as tx:\n"
        "                run.save(tx, journal.DONE)\n",
        "matrix",
        "fake",
    ),
    Plant(
        "a lock that no child inherits",
        "volctl/command.py",
        "{*pass_fds, *held.locks, *fds}, on_output, prepare, keep_locks",
        "{*pass_fds, *fds}, on_output, prepare, keep_locks",
        "orphans",
        "loop",
    ),
)


def run(kind: str, budget: Budget) -> Tally:
    """Each of them; one that is not caught is a violation."""
    tally = Tally(total=len(PLANTS))
    for plant in PLANTS:
        seconds, said = caught(plant, budget.seed)
        missed = [] if said else [f"{plant.part} on {plant.backend} did not catch it"]
        tally.add(plant.what, missed)
        if said:
            tally.told.append(f"{plant.what}: caught by {plant.part} on {plant.backend} in {seconds:.0f} s")
    return tally


def caught(plant: Plant, seed: int) -> tuple[float, str]:
    """Seconds from the start of the harness to its end at the first violation, and that; empty if there was none."""
    with tempfile.TemporaryDirectory(prefix="volctl-planted-") as copy:
        _plant(plant, Path(copy))
        words = ("--only", plant.part, "--backend", plant.backend, "--seed", str(seed), "--first", "--minutes", "3")
        env = {**os.environ, "PYTHONPATH": copy}
        argv = [sys.executable, "-m", "tests.torture", *words]
        begun = time.monotonic()
        done = subprocess.run(argv, cwd=copy, env=env, capture_output=True, text=True, check=False)
        took = time.monotonic() - begun
    said = [line for line in done.stdout.splitlines() if "VIOLATION" in line]
    assert done.returncode == (1 if said else 0), done.stdout + done.stderr
    return took, said[0].strip() if said else ""


def _plant(plant: Plant, copy: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    text = (copy / plant.file).read_text()
    assert text.count(plant.old) == 1, f"{plant.what}: {plant.file} has changed"
    (copy / plant.file).write_text(text.replace(plant.old, plant.new))

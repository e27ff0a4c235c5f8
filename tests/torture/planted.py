"""Mistakes put into a copy of volctl on purpose: the tests must catch each; says which does, and how fast."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import REPO
from tests.torture.core import Budget, Tally
from tests.torture.plants import PLANTS, Plant

COPIED = ("volctl", "backends", "tests", "scripts", "docs", "pyproject.toml", "README.md", "requirements-dev.lock")
FIRST = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


PAGE = REPO / "docs" / "planted.md"
HEAD = """\
# Mistakes planted on purpose

Each is put into a copy of volctl, and the tests of `make test` must catch it, real LVM included. This page is
written by `VOLCTL_WRITE_DOCS=1 scripts/torture --only planted`; each landing tries two or three of them.

| room | mistake | caught by | after |
| ---- | ------- | --------- | ----- |
"""


def run(kind: str, budget: Budget) -> Tally:
    """Each of them; one that is not caught is a violation."""
    tally, page = Tally(total=len(PLANTS)), HEAD
    for plant in PLANTS:
        seconds, by = caught(plant, budget.seed)
        tally.add(f"{plant.room}: {plant.what}", [] if by else [f"{' '.join(plant.words)} did not catch it"])
        line = f"| {plant.room} | {plant.what} | `{by or 'nothing'}` | {seconds:.0f} s |"
        print(line, flush=True)
        page += f"{line}\n"
    if os.environ.get("VOLCTL_WRITE_DOCS"):
        PAGE.write_text(page)
    return tally


def caught(plant: Plant, seed: int) -> tuple[float, str]:
    """Seconds from the start of the tests to the first that fails, and that; empty if none did."""
    with tempfile.TemporaryDirectory(prefix="volctl-planted-") as copy:
        planted(plant, Path(copy))
        begun = time.monotonic()
        done = _in_a_guest(plant, Path(copy), seed) if plant.guest else _here(plant, Path(copy), seed)
        took = time.monotonic() - begun
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = FIRST.search(done.stdout)
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr
    return took, found[1] if found else ""


PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--color=no")


def _here(plant: Plant, copy: Path, seed: int) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(copy), "VOLCTL_SEED": str(seed), "CI": ""}
    argv = [sys.executable, *PYTEST, *plant.words]
    return subprocess.run(argv, cwd=copy, env=env, capture_output=True, text=True, check=False)


def _in_a_guest(plant: Plant, copy: Path, seed: int) -> subprocess.CompletedProcess[str]:
    """The guest's checkout is what git lists."""
    for words in (("init", "-q"), ("add", ".")):
        subprocess.run(["git", "-C", copy, *words], check=True)
    settings = ["--venv", sys.prefix, "--disk", "1G", "--disk", "1G", "--env", f"VOLCTL_SEED={seed}"]
    argv = [str(copy / "scripts/vm"), *settings, "--", "python3", *PYTEST, *plant.words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def planted(plant: Plant, copy: Path) -> None:
    for name in COPIED:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    path = copy / plant.file
    path.write_text(path.read_text().replace(plant.old, plant.new))

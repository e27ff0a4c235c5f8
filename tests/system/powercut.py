"""Power cuts: many instants of one run in the guest of `scripts/vm`, then a look at what each would have left.

    copies = copies_during("volctl create ...; echo created", tmp_path, ["512M"], every=0.2)
    assert checked(copies, "tests/root/cut.py") == []

`copies_during` boots once and lets the program run; at each instant it keeps the disks as a power cut would have
left them, and what the program had said by then. `checked` boots once more and calls `check(copy)` of a Python file
for each in a process of its own: with /var/lib/volctl and the blank disks of that instant, LVM seeing no others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO

VM = str(REPO / "scripts" / "vm")
LIMIT = 1800.0  # seconds


@dataclass(frozen=True, slots=True)
class Instant:
    """The files of one instant: disk0, disk1, ..., state (an ext4), and what had been said."""

    directory: Path
    sectors: list[int]

    @property
    def said(self) -> str:
        return (self.directory / "said").read_text()

    def disks(self) -> list[str]:
        """Words for scripts/vm; the state comes last."""
        places = [f"{self.directory}/disk{number}:{sector}" for number, sector in enumerate(self.sectors)]
        return [word for place in [*places, f"{self.directory}/state"] for word in ("--disk", place)]


def copies_during(
    program: str, directory: Path, disks: list[str], every: float, most: int = 30, since: str = ""
) -> list[Instant]:
    """What power cuts `every` so many seconds leave while a shell runs `program`: at most so many, spread evenly.

    The first comes when the program has said `since`. `disks` are sizes as `scripts/vm --disk` takes them. Fails if
    the program does.
    """
    words = [word for disk in disks for word in ("--disk", disk)]
    copies = ["--copies", str(directory / "copies"), "--copy-every", str(every), "--copy-from", since]
    limit = ["--timeout", str(LIMIT)]
    done = subprocess.run(
        [VM, *words, *copies, *limit, "--", "sh", "-ec", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sectors = [4096 if disk.endswith(":4096") else 512 for disk in disks]
    found = sorted((directory / "copies").iterdir())
    count = min(most, len(found))
    return [Instant(found[number * len(found) // count], sectors) for number in range(count)]


def checked(instants: list[Instant], program: str) -> list[str]:
    """The names of the instants at which `check` of the Python file `program` failed; why is printed."""
    base = instants[0].directory.parent.parent
    said = base / "instants.json"
    facts = [
        {"name": instant.directory.name, "said": instant.said, "disks": len(instant.sectors)} for instant in instants
    ]
    said.write_text(json.dumps(facts))
    words = [word for instant in instants for word in instant.disks()]
    shutil.rmtree(base / "checked", ignore_errors=True)
    given = ["--in", str(said), "--out", str(base / "checked"), "--timeout", str(LIMIT)]
    script = os.path.relpath(Path(__file__).with_name("each_instant.py"), REPO)
    argv = [VM, *words, *given, "--", "python3", script, program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    failed: list[str] = json.loads((base / "checked" / "failed.json").read_text())
    return failed

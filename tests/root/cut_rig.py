"""The rig's own check after a power cut: what was said to be made and synced is there."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol


class Copy(Protocol):
    """tests/system/each_instant.py."""

    said: str


def check(copy: Copy) -> None:
    words = ["lvs", "--noheadings", "-o", "lv_name"]
    present = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    made = [line.split()[1] for line in copy.said.splitlines() if line.startswith("made ")]
    assert set(made) <= set(present), f"made {made}, present {present}"
    for name in made:
        assert Path("/var/lib/volctl", name).read_text() == f"{name}\n"
        assert subprocess.run(["lvchange", "-ay", f"rig/{name}"], check=False).returncode == 0
        assert Path("/dev/rig", name).exists()

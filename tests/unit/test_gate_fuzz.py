"""Mutated images through the gate: nothing but accepted and refused. VOLCTL_FUZZ=8000 is 104,000 of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.conftest import REPO
from tests.sampling import SEED
from tests.unit.fuzz_gate import BASES

COUNT = int(os.environ.get("VOLCTL_FUZZ", "400"))


def test_every_mutation_is_accepted_or_refused() -> None:
    """In a process of its own, whose memory can be told."""
    words = [sys.executable, "-m", "tests.unit.fuzz_gate", str(COUNT), str(SEED)]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(BASES)
    for line in lines:  # both outcomes, of every format: the mutations are neither all fatal nor all harmless
        assert "image_corrupt" in line and re.search(rf"{line.split('-')[0].partition(':')[0]} [0-9]+", line), line
    told = re.fullmatch(r"([0-9]+) images in [0-9]+ s, at most ([0-9]+) MiB", last)
    assert told and int(told[1]) == COUNT * len(BASES)
    assert int(told[2]) < 256

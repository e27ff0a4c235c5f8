"""The README's section on LVM, word for word: as a new user at a terminal, and after a reboot."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, environment
from tests.root.lvm_rig import lvs, run, volume_group
from tests.root.warm import image

SECTION = (REPO / "README.md").read_text(encoding="utf-8").split("\n## On LVM\n")[1].split("\n## ")[0]
SMALLER = {"100G": "300M", "--size 10 ": "--size 40M ", "+1": "+8M"}


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, disks: list[Path]) -> Iterator[Path]:
    """With volctl and sudo as commands, the image, and the README's configuration; only the sizes are others."""
    (tmp_path / "volctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m volctl "$@"\n')
    (tmp_path / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    for program in ("volctl", "sudo"):
        (tmp_path / program).chmod(0o755)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image(tmp_path / "raw", 4), tmp_path / "debian.qcow2")
    (config,) = fenced("toml")
    (tmp_path / "config.toml").write_text(smaller(config))
    with volume_group(disks[1:2], "other"):  # and the end of vg0
        yield tmp_path


def smaller(text: str) -> str:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


def at_a_terminal(home: Path, script: str, answer: str = "") -> str:
    """What a terminal of 80 columns shows; fails with the first command that fails."""
    env = environment(home, PYTHONPATH=str(REPO), TERM="xterm")
    env |= {"PATH": f"{home}:{env['PATH']}"}
    (home / "typed").write_text(f"set -eu\nstty cols 80\n{script}")
    done = subprocess.run(
        ["script", "-qec", "sh typed", "/dev/null"], cwd=home, env=env, input=answer, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_user_and_a_reboot(home: Path, disks: list[Path]) -> None:
    first, after_reboot = (smaller(block).replace("/dev/sdb", str(disks[0])) for block in fenced("sh"))
    shown = at_a_terminal(home, first, "y\n")
    assert "make the thin pool vg0/volctl of 300 MiB" in shown
    (volume,) = lvs("vg0", "lv_name=~^volume && lv_active=active")
    device = Path("/dev/vg0", volume)
    assert str(device) in shown
    mounted = device.read_bytes()
    run("vgchange", "-an", "vg0")
    assert not device.exists()
    assert str(device) in at_a_terminal(home, after_reboot)  # and not cut in two by the table
    assert device.read_bytes() == mounted and len(mounted) == 48 << 20

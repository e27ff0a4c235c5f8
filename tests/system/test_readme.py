"""The README is true: the commands of its day to day section run, in order, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import IS_ROOT, REPO, environment

README = (REPO / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text under `## title`."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small disk under the name that the README uses."""
    raw, target = tmp_path / "disk.raw", tmp_path / "debian.qcow2"
    with raw.open("wb") as file:
        file.write(b"guest" * 100_000)
        file.truncate(64 * 1024**2)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target], check=True, capture_output=True)
    return target


def test_day_to_day_commands(tmp_path: Path, image: Path) -> None:
    script = "".join(["set -eu\n", *FENCE.findall(section("Day to day"))])
    if not IS_ROOT:
        script = re.sub(r"^sudo .*\n", "", script, flags=re.MULTILINE)
    assert script.count("volctl ") > 15
    env = environment(tmp_path)
    binary = tmp_path / "bin"
    binary.mkdir()
    (binary / "volctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m volctl "$@"\n', encoding="utf-8")
    (binary / "sudo").write_text('#!/bin/sh\nexec "$@"\n', encoding="utf-8")
    for program in binary.iterdir():
        program.chmod(0o755)
    env |= {"PATH": f"{binary}:{env['PATH']}", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        ["sh", "-x", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_exit_codes_are_those_of_the_program() -> None:
    from volctl import errors

    told = {int(row[0]): row[1] for row in re.findall(r"^\| (\d+) +\|.*\| (.*?) +\|$", README, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VolctlError)]
    for kind in kinds:
        if kind is not errors.Cancelled:
            assert f"`{kind.code}`" in told[kind.exit]

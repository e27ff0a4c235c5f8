"""What is asked without doing anything must not pay for what does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO, environment

EXPENSIVE = ("asyncio", "oslo_utils", "pydantic", "pyudev", "rich", "sh", "sqlalchemy", "volctl.service")
PROBE = """
import sys
from volctl.cli import main
code = main(sys.argv[1:])
print(*sorted(name for name in {expensive} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


def probe(*argv: str) -> tuple[int, list[str], str]:
    """Exit code, the expensive modules that were imported, stdout."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(expensive=EXPENSIVE), *argv], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr.splitlines()[-1].split(), done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["--version"],
        ["--help"],
        ["create", "--help"],
        ["snapshot", "--help"],
        ["image", "add", "--help"],
        ["completion", "bash"],
        ["completion", "zsh"],
        ["completion", "fish"],
    ],
    ids=" ".join,
)
def test_answers_without_expensive_imports(argv: list[str]) -> None:
    code, imported, out = probe(*argv)
    assert (code, imported) == (0, [])
    assert out


@pytest.mark.parametrize(
    "argv",
    [[], ["nope"], ["list", "--nope"], ["show"], ["list", "-c", "nope"], ["delete", "x", "-o", "json"]],
    ids=" ".join,
)
def test_usage_errors_without_expensive_imports(argv: list[str]) -> None:
    code, imported, out = probe(*argv)
    assert (code, imported, out) == (2, [], "")


def test_version_does_not_need_the_parser() -> None:
    script = "import sys; from volctl.cli import main; main(['--version']); print('typer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "False"


def test_a_blank_volume_loads_nothing_of_images(tmp_path: Path) -> None:
    script = """
import sys
from volctl.cli import main
assert main(["create", "--size", "1M"]) == 0
print(*sorted(name for name in sys.modules if name.startswith("volctl.images.") or name == "volctl.flows.cache"))
"""
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in ("", "volctl.images.content"), "one function, for the key of the cache"


def test_runs_as_a_module_from_anywhere(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "volctl", "--version"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("volctl 0.")


def test_a_signal_while_it_starts_ends_it_without_a_word(tmp_path: Path) -> None:
    program = (
        "import os, signal, volctl.cli, volctl.cli.app\n"
        "volctl.cli.app.run = lambda words: os.kill(os.getpid(), signal.SIGINT)\n"
        "volctl.cli.main(['list'])"
    )
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, env=environment(tmp_path), cwd=REPO, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")

"""What `pip install .` puts on a machine works from any directory, without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import REPO, Volctl, environment

WHEEL = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]


def run(*argv: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(list(map(str, argv)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that has our wheel, and of the development one only the dependencies."""
    base = tmp_path_factory.mktemp("install")
    run(sys.executable, *WHEEL, "-w", base / "wheel", copy_of_checkout(base), cwd=base)
    run(sys.executable, "-m", "venv", base / "venv", cwd=base)
    python = base / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", *(base / "wheel").glob("*.whl"), cwd=base)
    link_dependencies(Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=base).strip()))
    return python.parent


def copy_of_checkout(base: Path) -> Path:
    """Only what the build may need, so that nothing is found in the checkout by accident."""
    source = base / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPO / name, source)
    for name in ("volctl", "backends"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def link_dependencies(site: Path) -> None:
    """Link each dependency; the editable volctl of the development environment stays out."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = "volctl" in entry.name or entry.name == "__pycache__"
        if not ours and not (site / entry.name).exists():
            os.symlink(entry, site / entry.name)


def test_version(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "volctl", "--version", cwd=tmp_path).startswith("volctl ")
    assert run(installed / "python", "-m", "volctl", "--version", cwd=tmp_path).startswith("volctl ")


def test_both_packages_are_in_the_wheel_with_their_types(installed: Path, tmp_path: Path) -> None:
    program = "import volctl, backends.loop; print(volctl.__file__); print(backends.__file__)"
    volctl, backends = map(Path, run(installed / "python", "-c", program, cwd=tmp_path).split())
    assert volctl.is_relative_to(installed.parent)
    assert backends.is_relative_to(installed.parent)
    assert (volctl.parent / "py.typed").exists()
    assert (backends.parent / "py.typed").exists()


def test_create_from_another_directory(installed: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    run(installed / "volctl", "create", "first", "--size", "1", cwd=tmp_path, env=env)
    path = Path(run(installed / "volctl", "path", "first", cwd=tmp_path, env=env).strip())
    assert path.stat().st_size == 1024**3
    assert path.is_relative_to(tmp_path / "state")


def test_a_stranger_s_backends_is_refused_not_run(installed: Path, tmp_path: Path) -> None:
    package = tmp_path / "backends"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('a stranger ran')\n", encoding="utf-8")
    argv: list[str | Path] = [installed / "volctl", "create", "first", "--size", "1"]
    env = environment(tmp_path, PYTHONPATH=str(tmp_path))
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a stranger ran" not in done.stderr
    assert str(package) in done.stderr


def test_an_ordinary_user_needs_no_setting_up(as_user: Volctl) -> None:
    made = as_user("create", "first", "--size", "1", "--json").json()
    assert made["status"] == "available"
    path = Path(as_user("path", "first").out.strip())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == as_user.home.stat().st_uid != 0

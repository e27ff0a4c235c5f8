"""The command line in this process, for speed; a test that needs processes takes `volctl` beside it.

Both use one home: `state/` and `config.toml` in the test's directory.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ran, environment
from volctl.cli import main

MiB = 1024**2
GiB = 1024**3
VARIABLES = ("VOLCTL_OUTPUT", "VOLCTL_LOCK_TIMEOUT", "VOLCTL_PROJECT", "VOLCTL_DEBUG", "NO_COLOR")
ERROR = ["code", "exit", "message", "hint", "volume", "details"]


@dataclass(frozen=True, slots=True)
class Cli:
    """`cli("create", "v", "--size", "1")` runs one command in this process."""

    home: Path
    capture: Callable[[], tuple[str, str]]

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def pool(self) -> Path:
        """The directory of the built-in backend."""
        return self.state / "volumes"

    def configure(self, text: str) -> None:
        (self.home / "config.toml").write_text(text)

    def __call__(self, *args: str | Path, status: int = 0) -> Ran:
        """Run one command; fails the test unless it ends with `status`."""
        code = main([str(arg) for arg in args])
        ran = Ran(code, *self.capture())
        assert "Traceback" not in ran.err
        assert code == status, f"volctl {' '.join(map(str, args))}: exit {code}, not {status}\n{ran.out}{ran.err}"
        return ran

    def json(self, *args: str | Path, status: int = 0) -> Any:
        """What a command prints with `--json`."""
        return self("--json", *args, status=status).json()

    def error(self, status: int, code: str, *args: str | Path) -> Any:
        """The error of a command that must fail; stdout stays empty."""
        ran = self("--json", *args, status=status)
        assert ran.out == ""
        error = json.loads(ran.err.splitlines()[-1])["error"]
        assert list(error) == ERROR
        assert (error["exit"], error["code"]) == (status, code), error
        assert ran.err.splitlines()[0] == f"volctl: {error['message']}"
        return error

    def refused(self, status: int, code: str, *args: str | Path) -> Any:
        """As `error`, and nothing was left behind: no row, file, event or lock."""
        before = self.everything()
        error = self.error(status, code, *args)
        assert self.everything() == before
        return error

    def everything(self) -> dict[str, Any]:
        """Every row and every file of the state directory."""
        return rows(self.state / "volctl.db") | files(self.home)

    def volume(self, name: str, *args: str | Path) -> Any:
        """A new volume of 1 MiB, or as `args` say."""
        return self.json("create", name, *(args or ("--size", "1M")))

    def file(self, ref: str) -> Path:
        return Path(self("path", ref).out.rstrip("\n"))

    def fill(self, ref: str, content: bytes, at: int = 0) -> None:
        with self.file(ref).open("r+b") as file:
            file.seek(at)
            file.write(content)

    def quota(self) -> dict[str, Any]:
        return {line["resource"]: line for line in self.json("quota", "show")}

    def events(self, ref: str) -> list[str]:
        return [event["type"] for event in self.json("events", ref)]


def rows(database: Path) -> dict[str, Any]:
    if not database.exists():
        return {}
    with closing(sqlite3.connect(database)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(tables)}
    return {name: lines for name, lines in found.items() if lines and name not in ("meta", "sqlite_sequence")}


def files(home: Path) -> dict[str, Any]:
    """Path to mode, size and time of change; not of what every first command makes."""
    ours = (path for path in home.rglob("*") if path.is_file() and not path.name.startswith("volctl.db"))
    found = {str(path): path.stat() for path in ours if path.name not in (".volctl", "calls")}
    return {name: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    yield make_cli(tmp_path, monkeypatch, capsys)


def make_cli(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)

    def capture() -> tuple[str, str]:
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    return Cli(home, capture)


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def make_image(path: Path, content: bytes, size: int, format: str = "qcow2") -> Path:
    """A disk of `size` bytes that begins with `content`."""
    raw = path.with_name(path.name + ".raw") if format != "raw" else path
    with raw.open("wb") as file:
        file.write(content)
        file.truncate(size)
    if format != "raw":
        qemu_img("convert", "-f", "raw", "-O", format, raw, path)
        raw.unlink()
    return path


def zeros(path: Path, start: int) -> bool:
    """Does the file read as zeros from `start` on? Holes are skipped."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        while start < end:
            try:
                start = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:
                return True
            chunk = os.pread(file.fileno(), MiB, start)
            if chunk.strip(b"\0"):
                return False
            start += len(chunk)
    return True

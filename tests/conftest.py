"""What tests share: volctl as a process, by this user or an ordinary one, and the real image.

A test that needs root carries the mark `root`, one whose virtual machine runs for minutes `guest`.
Where everything must run (`CI=true` or `VOLCTL_TEST_ALL=1`) a skipped test is a failed one.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.summary import again, pytest_report_header, pytest_runtest_logreport, pytest_terminal_summary
from volctl import interrupt

__all__ = ["pytest_report_header", "pytest_runtest_logreport", "pytest_terminal_summary"]

REPO = Path(__file__).resolve().parent.parent
EVERYTHING = os.environ.get("CI") == "true" or os.environ.get("VOLCTL_TEST_ALL") == "1"
IS_ROOT = os.geteuid() == 0
NOBODY = 65534
MAKE = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}
TESTS = itertools.count()
LIMIT = 600.0  # seconds after which a test's own process is hung


@pytest.fixture(autouse=True)
def nothing_is_done() -> None:
    """A test that calls volctl in this process begins as a command does, whatever an earlier one finished.

    A command leaves what it made to the end of its process (`volctl.cli.main`); this one would come to gigabytes, and
    each program that it starts to a copy of their page tables.
    """
    interrupt.listen()
    if next(TESTS) % 20 == 0:  # each takes a tenth of a second
        gc.unfreeze()
        gc.collect()


@dataclass(frozen=True, slots=True)
class Ran:
    """How one volctl ended and what it printed."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Volctl:
    """`volctl("create", "v", "--size", "1")` in a state directory of its own."""

    argv: Sequence[str]
    home: Path
    environment: Mapping[str, str]

    @property
    def state(self) -> Path:
        return self.home / "state"

    def __call__(self, *args: str | Path, status: int | None = 0, cwd: Path | None = None) -> Ran:
        """Run one command; fails the test unless it ends with `status` (None: whatever it is)."""
        done = subprocess.run(
            [*self.argv, *map(str, args)],
            env=dict(self.environment),
            cwd=cwd or self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        if status is not None and done.returncode != status:
            pytest.fail(f"volctl {' '.join(map(str, args))}: exit {done.returncode}, not {status}\n{done.stderr}")
        return Ran(done.returncode, done.stdout, done.stderr)


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the caller's or the machine's settings; a test may write its own `config.toml`."""
    config = home / "config.toml"
    config.touch()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    ours = {"VOLCTL_CONFIG": str(config), "VOLCTL_STATE_DIR": str(home / "state")}
    return {"HOME": str(home), "LC_ALL": "C.UTF-8", "PATH": path, **ours, **more}


@pytest.fixture
def volctl(tmp_path: Path) -> Volctl:
    return Volctl([sys.executable, "-m", "volctl"], tmp_path, environment(tmp_path, PYTHONPATH=str(REPO)))


@pytest.fixture
def as_user(request: pytest.FixtureRequest) -> Iterator[Volctl]:
    """volctl run by an ordinary user, also when the tests are run by root."""
    if not IS_ROOT:
        yield request.getfixturevalue("volctl")
        return
    prefix, path = request.getfixturevalue("user_python")
    home = Path(tempfile.mkdtemp(prefix="volctl-user-"))  # tmp_path is closed to others
    settings = environment(home, PYTHONPATH=path)
    for path_of_user in (home, *home.iterdir()):
        os.chown(path_of_user, NOBODY, NOBODY)
    yield Volctl([*prefix, "-m", "volctl"], home, settings)
    shutil.rmtree(home)


@contextmanager
def without_root() -> Iterator[None]:
    """The test's own process has an ordinary user's rights on files inside the block."""
    before = os.geteuid()
    os.seteuid(NOBODY if IS_ROOT else before)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture(scope="session")
def user_python() -> Iterator[tuple[list[str], str]]:
    """A command line that is Python as an ordinary user, and its PYTHONPATH.

    The checkout or the environment's Python may be closed to others (root's home): then Debian's
    Python runs a copy.
    """
    # setpriv itself still may start what the user may not; env is the first that may not.
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all", "env"]
    if _runs([*drop, sys.executable], str(REPO)):
        yield [*drop, sys.executable], str(REPO)
        return
    copy = Path(tempfile.mkdtemp(prefix="volctl-python-"))
    copy.chmod(0o755)
    unneeded = shutil.ignore_patterns("mypy*", "ruff*", "pip*", "setuptools*", "hypothesis*", "__pycache__", "*.pth")
    for source in (Path(sysconfig.get_path("purelib")), REPO / "volctl", REPO / "backends"):
        target = copy if source.name == "site-packages" else copy / source.name
        shutil.copytree(source, target, ignore=unneeded, dirs_exist_ok=True)
    subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
    if not _runs([*drop, "/usr/bin/python3"], str(copy)):
        pytest.skip("no Python that an ordinary user can run; install python3-venv and remove .venv")
    yield [*drop, "/usr/bin/python3"], str(copy)
    shutil.rmtree(copy)


def _runs(python: list[str], path: str) -> bool:
    words = [*python, "-c", "import volctl.cli, sqlalchemy, typer"]
    env = {"PYTHONPATH": path, "PATH": os.environ.get("PATH", os.defpath), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(words, env=env, cwd="/", capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="session")
def debian_image() -> Path:
    """The bootable image of `make demo`; made once, some 40 s, and kept in the user's cache."""
    done = subprocess.run([REPO / "scripts" / "debian-image"], capture_output=True, text=True, check=False)
    if done.returncode == 9:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def reflink_mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty xfs or btrfs of 1.5 GiB."""
    if not IS_ROOT:
        pytest.skip("needs root to mount")
    base = tmp_path_factory.mktemp(request.param)
    disk, mount = base / "disk", base / "mount"
    mount.mkdir()
    with disk.open("wb") as file:
        file.truncate(3 << 29)
    subprocess.run([*MAKE[request.param], str(disk)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", str(disk), str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)
    disk.unlink()


def pytest_configure() -> None:
    """A shell starts what it puts into the background with SIGINT ignored, and so would be all that we start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guests come first: each keeps a processor busy for many minutes, and the rest fits beside them."""
    items.sort(key=lambda item: not ({"guest", "vm"} & set(item.keywords)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and not IS_ROOT:
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("again with", again(item.nodeid)))
    if not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if EVERYTHING and report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped where everything must run: {reason}"


@contextmanager
def tmpfs(place: Path, size: str) -> Iterator[Path]:
    """A file system in memory at the new directory `place`, gone when the block ends; `size` as for mount(8)."""
    if os.geteuid():
        pytest.skip("mounting a tmpfs needs root")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def await_blocked(descriptor: int, many: int) -> None:
    """Until so many wait for the lock of an open file, as the kernel tells it (proc(5), locks)."""
    inode, end = os.fstat(descriptor).st_ino, time.monotonic() + 60
    while True:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        if sum("->" in line and line[-3].endswith(f":{inode}") for line in lines) >= many:
            return
        assert time.monotonic() < end, "nobody waits"
        time.sleep(0.01)

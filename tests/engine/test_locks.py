"""Lock files come and go under the hands of other commands; a lock is had all the same, and by one at a time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import LIMIT, NOBODY, REPO, without_root
from volctl import held
from volctl.db.store import keep_owner
from volctl.engine.locks import EXCLUSIVE, SHARED, LockDirectory
from volctl.errors import LockedError


def test_a_new_file_swept_before_it_is_locked_is_made_anew(tmp_path: Path) -> None:
    """Another command's sweep sees the file between its making and its name."""
    swept: list[Path] = []

    def own(path: Path) -> None:
        if not swept:
            swept.append(path)
            LockDirectory(tmp_path, keep_owner).sweep()
        keep_owner(path)
        path.stat()

    with LockDirectory(tmp_path, own).acquire({"volume": EXCLUSIVE}, 0) as held:
        assert len(swept) == 1 and os.listdir(tmp_path) == ["volume"]
        assert held.names == {"volume": EXCLUSIVE}
        assert LockDirectory(tmp_path, keep_owner).try_acquire({"volume": EXCLUSIVE}) is None


@pytest.fixture
def locks(tmp_path: Path) -> LockDirectory:
    return LockDirectory(tmp_path, keep_owner)


def test_a_lock_is_had_by_one(locks: LockDirectory, tmp_path: Path) -> None:
    with locks.acquire({"a": EXCLUSIVE}, 0):
        assert locks.try_acquire({"a": EXCLUSIVE}) is None
        assert locks.try_acquire({"a": SHARED}) is None
        with pytest.raises(LockedError):
            locks.acquire({"a": EXCLUSIVE}, 0.05)
    with locks.acquire({"a": EXCLUSIVE}, 0):
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_shared_lock_is_shared_with_its_like_only(locks: LockDirectory, tmp_path: Path) -> None:
    first = locks.acquire({"a": SHARED}, 0)
    second = locks.acquire({"a": SHARED}, 0)
    assert locks.try_acquire({"a": EXCLUSIVE}) is None
    first.close()
    assert (tmp_path / "a").exists(), "the second still holds it"
    assert locks.try_acquire({"a": EXCLUSIVE}) is None
    second.close()
    assert os.listdir(tmp_path) == []


def test_all_or_none(locks: LockDirectory, tmp_path: Path) -> None:
    with locks.acquire({"b": EXCLUSIVE}, 0):
        assert locks.try_acquire({"a": EXCLUSIVE, "b": SHARED, "c": EXCLUSIVE}) is None
        assert os.listdir(tmp_path) == ["b"]
    assert held.locks == set()


def test_locks_are_taken_in_one_order_whatever_they_are_asked_in(locks: LockDirectory) -> None:
    """Two that want the same pair, each in another order, never wait for each other."""
    done: list[str] = []

    def take(*names: str) -> None:
        for _ in range(50):
            with LockDirectory(locks._directory, keep_owner).acquire(dict.fromkeys(names, EXCLUSIVE), LIMIT):
                done.append(names[0])

    threads = [threading.Thread(target=take, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(done) == 100


def test_a_file_that_was_replaced_while_waiting_is_not_the_lock(locks: LockDirectory, tmp_path: Path) -> None:
    """Who waits for an unlinked file must not believe that he has what somebody else has by name."""
    held = locks.acquire({"a": EXCLUSIVE}, 0)
    (tmp_path / "a").unlink()
    other = locks.acquire({"a": EXCLUSIVE}, 0)
    held.close()
    assert (tmp_path / "a").exists(), "the file of that name is not ours to unlink"
    assert locks.try_acquire({"a": EXCLUSIVE}) is None
    other.close()
    assert os.listdir(tmp_path) == []


def test_under_many_hands_a_lock_is_still_had_by_one(tmp_path: Path) -> None:
    """Processes that take, unlink and sweep as fast as they can never meet inside."""
    code = """
import os, sys
from pathlib import Path
from volctl.engine.locks import LockDirectory
root = Path(sys.argv[1])
for turn in range(150):
    directory = LockDirectory(root / "locks", lambda path: None)
    with directory.acquire({"a": "exclusive"}, 600):
        os.close(os.open(root / "inside", os.O_CREAT | os.O_EXCL))
        os.unlink(root / "inside")
    directory.sweep()
"""
    (tmp_path / "locks").mkdir()
    words = [sys.executable, "-c", code, str(tmp_path)]
    workers = [subprocess.Popen(words, cwd=REPO, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for worker in workers:
        assert worker.communicate(timeout=LIMIT)[1] == ""
        assert worker.returncode == 0
    assert os.listdir(tmp_path / "locks") == []


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_who_only_tidies_up_is_in_nobodys_way(locks: LockDirectory, tmp_path: Path, mode: str) -> None:
    """A lock that no command holds is had at once, however many sweep, and let go of what they share."""
    code = """
import os, sys
from pathlib import Path
from volctl.engine.locks import LockDirectory
directory = LockDirectory(Path(sys.argv[1]), lambda path: None)
print("begun", flush=True)
while os.getppid() == int(sys.argv[3]):
    directory.sweep()
    if sys.argv[2] == "shared":
        directory.acquire({"a": "shared"}, 600).close()
"""
    words = [sys.executable, "-c", code, str(tmp_path), mode, str(os.getpid())]
    others = [subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for other in others:
            assert other.stdout and other.stdout.readline()
        for _ in range(2000):
            locks.acquire({"a": mode}, 0).close()
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_a_child_keeps_the_lock_of_a_parent_that_was_killed(locks: LockDirectory, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from volctl import command
from volctl.engine.locks import LockDirectory
LockDirectory(Path(sys.argv[1]), lambda path: None).acquire({"a": "exclusive"}, 0)
command.run("sh", "-c", "echo $$; exec sleep 600", on_output=lambda text: print(text, flush=True, end=""))
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=REPO, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        parent.kill()
    assert locks.try_acquire({"a": EXCLUSIVE}) is None
    locks.sweep()
    assert os.listdir(tmp_path) == ["a"], "a sweep leaves what a child holds"
    os.kill(child, signal.SIGKILL)
    end = time.monotonic() + LIMIT
    while (held := locks.try_acquire({"a": EXCLUSIVE})) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    held.close()


def test_a_sweep_takes_what_nobody_holds(locks: LockDirectory, tmp_path: Path) -> None:
    (tmp_path / "left").touch()
    with locks.acquire({"mine": EXCLUSIVE, "shared": SHARED}, 0):
        locks.sweep()
        assert sorted(os.listdir(tmp_path)) == ["mine", "shared"]


def test_a_sweep_passes_over_what_is_no_lock(locks: LockDirectory, tmp_path: Path) -> None:
    (tmp_path / "junk").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    locks.sweep()
    assert sorted(os.listdir(tmp_path)) == ["junk", "link", "pipe"]


@pytest.mark.root
@pytest.mark.parametrize("step", ["own", "link"])
def test_root_that_is_killed_while_it_makes_a_lock_locks_nobody_out(tmp_path: Path, step: str) -> None:
    """The directory is an ordinary user's: a file of root's in it he could not open."""
    code = """
import os, signal, sys
from pathlib import Path
from volctl.db.store import keep_owner
from volctl.engine.locks import LockDirectory
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "link":
    os.link = die
LockDirectory(Path(sys.argv[1]), die if sys.argv[2] == "own" else keep_owner).acquire({"a": "exclusive"}, 0)
"""
    theirs = Path(tempfile.mkdtemp(prefix="volctl-user-"))  # tmp_path is closed to others
    os.chown(theirs, NOBODY, NOBODY)
    try:
        subprocess.run([sys.executable, "-c", code, str(theirs), step], cwd=REPO, check=False)
        assert len(os.listdir(theirs)) == 1
        with without_root():
            with LockDirectory(theirs, keep_owner).acquire({"a": EXCLUSIVE}, 0):
                pass
            LockDirectory(theirs, keep_owner).sweep()
        assert os.listdir(theirs) == []
        (theirs / "a").touch(0o600)
        with without_root():
            LockDirectory(theirs, keep_owner).sweep()
    finally:
        shutil.rmtree(theirs)

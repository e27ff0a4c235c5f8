"""Programs that must not last, and programs that close what they inherit, as LVM's do."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import LIMIT
from volctl import command
from volctl.errors import BackendError

WORKER = """
import os, sys, time
os.closerange(3, 64)
print("closed", flush=True)
while os.path.exists({works!r}):
    time.sleep(0.01)
"""
OWNER = """
import fcntl, os, sys
from volctl import command
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
command.run(sys.executable, "-c", sys.argv[2], pass_fds=(fd,), keep_locks=sys.argv[3] == "keep",
            on_output=lambda piece: os.write(1, piece.encode()) and None)
"""


def test_a_program_that_lasts_too_long_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(BackendError, match=r"sleep did not end within 0\.3 s"):
        command.run("sleep", 600, timeout=0.3)
    assert time.monotonic() - began < LIMIT / 2 and not command.children_left()
    assert command.run("sleep", 0, timeout=LIMIT).status == 0


LARGE = """
import sys
from volctl import command
large = [bytearray(1 << 20) for _ in range(400)]
words = ["-n", *["x" * 100_000] * 15]  # their copies need room
print(len(command.run("echo", *words, limits=command.Limits(memory=64 << 20)).out))
"""


def test_a_process_larger_than_the_limit_of_its_programs_can_start_them() -> None:
    """Until exec(2) the child is a copy of it: sh's could neither go on nor end, and came back as a second volctl."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout) == (0, "1500014\n"), done.stderr[-2000:]


UNEXPECTED = """
from volctl import command
def interrupted(limits): raise KeyboardInterrupt
command._limit = interrupted
try:
    command.run("true", limits=command.Limits())
finally:
    print("one volctl")
"""


def test_a_child_that_cannot_start_its_program_is_no_second_volctl() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNEXPECTED], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.stdout == "one volctl\n" and "true failed with status 255" in done.stderr


def test_a_program_has_no_more_memory_than_its_limit() -> None:
    program = [sys.executable, "-c", "bytearray(600 << 20); print('had')"]
    assert command.run(*program, limits=command.Limits(memory=1000 << 20)).out == "had\n"
    with pytest.raises(BackendError, match="MemoryError"):
        command.run(*program, limits=command.Limits(memory=100 << 20))


def test_what_else_runs_has_a_name_of_any_bytes(tmp_path: Path) -> None:
    """Whether a child left others is asked of all processes."""
    odd = tmp_path / os.fsdecode(b"\xfe\xff")
    shutil.copy(str(shutil.which("sleep")), odd)
    with subprocess.Popen([odd, "600"]) as stranger:
        command.run("sh", "-c", "sleep 600 & :")
        assert not command.children_left()
        stranger.kill()


def test_what_a_program_that_holds_our_locks_says_is_its_own() -> None:
    result = command.run("sh", "-c", "echo out; echo err >&2; exit 7", ok=(7,), keep_locks=True)
    assert (result.status, result.out, result.err) == (7, "out\n", "err\n")
    assert command.run("sh", "-c", "kill -SEGV $$", ok=(-11,), keep_locks=True).status == -11
    assert command.run("echo", "a b", "$HOME", "*", keep_locks=True).out == "a b $HOME *\n"


@pytest.mark.parametrize("keep", ["keep", "lose"])
def test_a_lock_outlives_its_owner_with_the_program(tmp_path: Path, keep: str) -> None:
    lock, works = tmp_path / "lock", tmp_path / "works"
    lock.touch()
    works.touch()
    worker = WORKER.format(works=str(works))
    owner = subprocess.Popen([sys.executable, "-c", OWNER, lock, worker, keep], stdout=subprocess.PIPE, text=True)
    assert owner.stdout and owner.stdout.readline() == "closed\n"
    owner.kill()
    owner.wait()
    owner.stdout.close()
    fd = os.open(lock, os.O_RDWR)
    try:
        if keep == "keep":
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        works.unlink()
        fcntl.flock(fd, fcntl.LOCK_EX)  # until the program ends
    finally:
        os.close(fd)

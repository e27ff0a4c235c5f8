"""backup-db: a whole copy at any time, or none; and another host's database, taken over."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MiB, make_image, rows
from tests.conftest import Volctl, await_blocked
from volctl.db.store import machine_id


def restore(cli: Cli, copy: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{cli.state}/volctl.db{suffix}").unlink(missing_ok=True)
    shutil.copy(copy, cli.state / "volctl.db")


def test_a_backup_is_one_file_that_can_be_put_back(cli: Cli) -> None:
    made = cli.volume("v")
    cli("snapshot", "create", "v", "s")
    before = rows(cli.state / "volctl.db")
    told = cli.json("backup-db", "copy.db")
    copy = cli.home / "copy.db"
    assert (told["file"], told["size"]) == (str(copy), copy.stat().st_size)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert rows(copy) == before
    assert sorted(path.name for path in cli.home.iterdir()) == ["config.toml", "copy.db", "state"]
    cli("snapshot", "delete", "s", "--yes")
    cli("set", "v", "--description", "later")
    restore(cli, copy)
    assert cli.json("show", "v")["updated_at"] == made["updated_at"]
    assert cli.json("doctor", status=12)[0]["kind"] == "snapshot_object"


DIE = """
import os
from volctl.cli import main
from volctl.db import store
commits = iter(range(20))
store.probe = lambda point: point == "after commit" and next(commits) == 12 and os._exit(9)
main(["create", "late", "--size", "1M", "--count", "9"])
"""


@pytest.fixture
def put_back(cli: Cli, volctl: Volctl) -> Path:
    """A backup in the place of a database that is lost, whose log a command that was killed has left."""
    cli.volume("v")
    cli("backup-db", "copy.db")
    cli("create", "w", "--size", "1M", "--count", "9")
    done = subprocess.run([sys.executable, "-c", DIE], env=volctl.environment, check=False)
    assert done.returncode == 9
    (cli.state / "volctl.db").unlink()
    assert "volctl.db-wal" in cli.error(11, "db", "list")["hint"]
    shutil.copy(cli.home / "copy.db", cli.state / "volctl.db")
    assert (cli.state / "volctl.db-wal").stat().st_size > 0
    return cli.home / "copy.db"


def test_the_log_of_a_lost_database_is_not_played_into_a_backup(put_back: Path, cli: Cli) -> None:
    left = (cli.state / "volctl.db-wal").read_bytes()
    assert [volume["name"] for volume in cli.json("list")] == ["v"]
    assert rows(cli.state / "volctl.db") == rows(put_back)
    (aside,) = cli.state.glob("volctl.db.unusable-*-wal")
    assert aside.read_bytes() == left
    assert {found["kind"] for found in cli.json("doctor", status=12)} == {"orphan"}


def test_of_first_commands_on_a_backup_none_takes_anothers_log_away(put_back: Path, cli: Cli, volctl: Volctl) -> None:
    descriptor = os.open(cli.state, os.O_RDONLY)
    words = [*volctl.argv, "create", "n", "--size", "1M", "--count", "3", "-q"]
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        of = [[*words, "--project", str(number)] for number in range(4)]
        all_ = [subprocess.Popen(each, env=volctl.environment, stdout=subprocess.DEVNULL) for each in of]
        await_blocked(descriptor, 4)
    finally:
        os.close(descriptor)
    assert [one.wait() for one in all_] == [0] * 4
    assert len(cli.json("list", "--all-projects")) == 1 + 4 * 3
    assert len(list(cli.state.glob("volctl.db.unusable-*-wal"))) == 1
    cli.json("doctor", status=12)


def test_what_is_there_is_not_replaced(cli: Cli) -> None:
    cli.volume("v")
    kept = cli.home / "copy.db"
    kept.write_text("precious")
    cli.error(5, "exists", "backup-db", "copy.db")
    assert kept.read_text() == "precious"
    cli("backup-db", "copy.db", "--force")
    assert rows(kept)["volumes"]
    kept.unlink()
    kept.symlink_to("elsewhere")
    cli.error(5, "exists", "backup-db", "copy.db")
    assert not (cli.home / "elsewhere").exists()


@pytest.mark.parametrize(
    "file",
    [
        ".",
        "nowhere/copy.db",
        "linked.db",
        "state/volctl.db",
        "state/volctl.db-wal",
        "state/volctl.db-journal",
        "state/locks/copy.db",
        "state/volumes/copy.db",
        "pipe",
        "/dev/null",
        "n" * 300,
    ],
)
def test_where_no_backup_can_be(file: str, cli: Cli) -> None:
    cli.volume("v")
    (cli.home / "linked.db").symlink_to("state/volctl.db")
    os.mkfifo(cli.home / "pipe")
    before = cli.everything()
    cli.error(2, "usage", "backup-db", file, "--force")
    assert cli.everything() == before


def test_a_file_that_appears_meanwhile_is_not_replaced(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    code = """
import os
from volctl.cli import main
link = os.link
os.link = lambda *given, **how: (open("copy.db", "x").write("precious"), link(*given, **how))
raise SystemExit(main(["backup-db", "copy.db"]))
"""
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=volctl.environment, cwd=cli.home, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert (cli.home / "copy.db").read_text() == "precious"


def test_from_a_directory_that_is_gone(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    (gone := cli.home / "gone").mkdir()
    argv = ["sh", "-c", f'rmdir {gone}; exec "$@"', "sh", *volctl.argv, "backup-db", "copy.db"]
    done = subprocess.run(argv, env=volctl.environment, cwd=gone, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "working directory is gone" in done.stderr


def test_while_others_write(cli: Cli, volctl: Volctl) -> None:
    """Each copy is one moment: the volumes in it are complete, and there are never fewer than before."""
    cli("list")
    words = [*volctl.argv, "create", "v", "--size", "1M", "--count", "60", "-q"]
    writer = subprocess.Popen(words, env=volctl.environment, stdout=subprocess.DEVNULL)
    counts, number = [0], 0
    while writer.poll() is None:
        number += 1
        cli("backup-db", f"{number}.db")
        with closing(sqlite3.connect(cli.home / f"{number}.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (count,) = db.execute("SELECT count(*) FROM volumes").fetchone()
        assert count >= counts[-1]
        counts.append(count)
    assert writer.returncode == 0 and len(set(counts)) > 2


SAVED = """
import subprocess, sys
from volctl.cli import main
from volctl.images import convert
copy_image = convert.copy_image
def saved(*given):
    subprocess.run([sys.executable, "-m", "volctl", "backup-db", "copy.db"], check=True)
    copy_image(*given)
convert.copy_image = saved
sys.exit(main(["create", "v", "--from-image", "disk.raw"]))
"""


@pytest.mark.parametrize("kind", ["loop", "qcow2"])
def test_what_was_being_made_from_an_image_is_available_again(kind: str, cli: Cli, volctl: Volctl) -> None:
    """On qcow2 it lies over the cached image that was being filled then, and no row knows that."""
    cli.configure(f'[[backend]]\nname = "a"\nkind = "{kind}"\ndirectory = "{cli.home}/a"\n')
    cli("backend", "init", "a", "--yes")
    make_image(cli.home / "disk.raw", b"image", MiB, "raw")
    subprocess.run([sys.executable, "-c", SAVED], env=volctl.environment, cwd=cli.home, check=True)
    restore(cli, cli.home / "copy.db")
    assert cli.json("show", "v")["status"] == "error"
    assert not any(found["deletes"] for found in cli.json("doctor", status=12))
    cli("doctor", "--fix", "--yes")
    assert cli.json("doctor") == []
    cli("image", "save", "v", "saved.raw", "--format", "raw")
    assert (cli.home / "saved.raw").read_bytes().rstrip(b"\0") == b"image"
    cli.volume("w", "--from-image", "disk.raw")
    assert len(list((cli.home / "a").glob("image-*"))) == (kind == "qcow2")


HALT = """
import os, sys, time
from volctl.cli import main
os.link = lambda *given, **how: (print("whole", flush=True), time.sleep(600))
main(["backup-db", "copy.db"])
"""


def test_a_killed_backup_leaves_nothing_after_one_more_command_and_one_that_lives_is_left_alone(
    cli: Cli, volctl: Volctl
) -> None:
    cli.volume("v")
    argv = [sys.executable, "-c", HALT]
    with subprocess.Popen(argv, env=volctl.environment, cwd=cli.home, stdout=subprocess.PIPE) as running:
        assert running.stdout and running.stdout.readline() == b"whole\n"
        (unfinished,) = cli.home.glob(".volctl-backup-*")
        cli("list")
        assert unfinished.exists()
        running.kill()
    cli("list")
    assert sorted(path.name for path in cli.home.iterdir()) == ["config.toml", "state"]
    assert not list(cli.state.glob("backup-*"))
    cli("backup-db", "copy.db")
    assert sorted(path.name for path in cli.home.iterdir()) == ["config.toml", "copy.db", "state"]


def test_what_cannot_be_removed_yet_hinders_nobody(cli: Cli) -> None:
    cli.volume("v")
    stays, goes = (str(uuid.uuid4()) for _ in range(2))
    directory = cli.home / f".volctl-backup-{stays}"
    directory.mkdir()
    for name, target in ((stays, directory), (goes, cli.home / "nowhere" / f".volctl-backup-{goes}")):
        (cli.state / f"backup-{name}").symlink_to(target)
    cli("list")
    assert directory.is_dir()
    assert [path.name for path in cli.state.glob("backup-*")] == [f"backup-{stays}"]


@pytest.mark.root
def test_no_room_for_a_backup(cli: Cli) -> None:
    cli.volume("v")
    mount = cli.home / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount], check=True)
    try:
        cli.error(6, "no_space", "backup-db", mount / "copy.db")
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.skipif(machine_id() is None, reason="this machine has no /etc/machine-id")
def test_another_hosts_database_is_taken_over(cli: Cli) -> None:
    cli.volume("v")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        db.execute("UPDATE meta SET value = '0123456789abcdef0123456789abcdef' WHERE key = 'machine_id'")
    assert "--take-over" in cli.error(11, "db", "list")["hint"]
    cli.error(11, "db", "doctor", "--fix", "--yes")
    assert cli.json("doctor", "--take-over") == []
    assert [volume["name"] for volume in cli.json("list")] == ["v"]


def test_a_database_that_may_only_be_read(as_user: Volctl) -> None:
    as_user("create", "v", "--size", "1M")
    database = as_user.state / "volctl.db"
    database.chmod(0o400)
    before = sorted((as_user.state / "volumes").iterdir())
    for words in (["create", "w", "--size", "1M"], ["delete", "v", "--yes"], ["doctor", "--rebuild", "--yes"]):
        ran = as_user(*words, "--json", status=11)
        assert '"db"' in ran.err and "volctl.db cannot be written" in ran.err and "hint: may you write it" in ran.err
    database.chmod(0)
    assert "hint: may you read it" in as_user("doctor", "--rebuild", "--yes", status=11).err
    assert sorted((as_user.state / "volumes").iterdir()) == before


@pytest.mark.root
def test_a_state_directory_on_a_read_only_file_system(cli: Cli) -> None:
    mount = cli.home / "state"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", mount], check=True)
    try:
        mount.chmod(0o700)
        cli.volume("v")
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        verbs = (["list"], ["create", "w", "--size", "1M"], ["doctor", "--fix", "--yes"], ["doctor", "--rebuild", "-y"])
        for words in verbs:
            assert "mounted read-only" in cli.error(11, "db", *words)["hint"]
        subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
        assert [volume["name"] for volume in cli.json("list")] == ["v"]
    finally:
        end = time.monotonic() + 60
        while subprocess.run(["umount", mount], check=False).returncode and time.monotonic() < end:
            time.sleep(0.1)


def test_a_link_that_is_only_named_like_a_note_of_ours_leads_to_nothing(cli: Cli) -> None:
    cli.volume("v")
    cli("backup-db", "mine.db")
    name, stranger = str(uuid.uuid4()), cli.home / f".volctl-backup-{uuid.uuid4()}"
    stranger.write_bytes(b"precious")
    (cli.state / "backup-latest").symlink_to(cli.home / "mine.db")
    (cli.state / "backup-of-v").symlink_to(cli.file("v"))
    (cli.state / f"backup-{name}").symlink_to(stranger)
    (cli.state / "backup-directory").mkdir()
    left, note = cli.home / f".volctl-backup-{(killed := uuid.uuid4())}", cli.state / f"backup-{killed}"
    left.write_bytes(b"half")
    note.symlink_to(left)
    beside = [left.with_name(left.name + end) for end in ("-wal", "-shm")]
    for path in beside:
        path.write_bytes(b"half")
    cli("list")
    assert (cli.home / "mine.db").exists() and cli.file("v").exists() and stranger.exists()
    assert not any(path.exists() for path in (left, *beside)) and not note.is_symlink()
    assert cli.json("doctor") == []


SIGNALLED = """
import os, signal, sys
from volctl import files
from volctl.cli import main
give_name = files.give_name
def signalled(*args, **how):
    give_name(*args, **how)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
files.give_name = signalled
sys.exit(main(["backup-db", "copy.db"]))
"""


def test_a_backup_that_is_there_is_done_whatever_signals_come(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    done = subprocess.run([sys.executable, "-c", SIGNALLED], env=volctl.environment, cwd=cli.home, check=False)
    assert done.returncode == 0 and (cli.home / "copy.db").exists()

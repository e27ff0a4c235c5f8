"""The state directory: made whole or not at all, private, and refused when it is not ours to use."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, MiB, rows
from tests.conftest import NOBODY, REPO, Volctl, environment
from volctl.db.store import APPLICATION_ID, machine_id


def sql(cli: Cli, text: str) -> Any:
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        return db.execute(text).fetchone()


def test_modes(cli: Cli) -> None:
    before = os.umask(0)
    try:
        cli.volume("v")
        cli("snapshot", "create", "v", "s")
        cli("image", "add", "i", "volume:v")
        (cli.home / "disk.raw").write_bytes(b"x" * MiB)
        cli("image", "add", "j", "disk.raw", "--copy")
    finally:
        os.umask(before)
    for path in (cli.state, *cli.state.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_marks(cli: Cli) -> None:
    cli("list")
    assert sql(cli, "PRAGMA application_id") == (APPLICATION_ID,)
    assert sql(cli, "PRAGMA user_version")[0] >= 1
    assert sql(cli, "PRAGMA journal_mode") == ("wal",)
    assert sql(cli, "PRAGMA integrity_check") == ("ok",)


def test_a_world_writable_directory(cli: Cli) -> None:
    cli.state.mkdir()
    cli.state.chmod(0o777)
    assert "chmod 700" in cli.error(2, "config", "create", "v", "--size", "1M")["hint"]
    assert list(cli.state.iterdir()) == []


def test_what_is_no_directory(cli: Cli) -> None:
    cli.state.write_text("x")
    cli.refused(2, "config", "list")
    cli.state.unlink()
    cli.state.symlink_to(cli.home / "nowhere")
    cli.refused(2, "config", "list")


def empty(database: Path) -> None:
    database.write_bytes(b"")


def text(database: Path) -> None:
    database.write_text("not a database, but longer than the sixteen bytes of a magic\n" * 100)


def foreign(database: Path) -> None:
    database.unlink()
    with closing(sqlite3.connect(database)) as db:
        db.execute("CREATE TABLE notes (text)")


def newer(database: Path) -> None:
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("PRAGMA user_version = 999")


def truncated(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


def garbled(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * (database.stat().st_size - 100))


def of_another_host(database: Path) -> None:
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE meta SET value = '0123456789abcdef0123456789abcdef' WHERE key = 'machine_id'")


def without_marks(database: Path) -> None:
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("DELETE FROM meta")


def directory(database: Path) -> None:
    database.unlink()
    database.mkdir()


SPOILS = [empty, text, foreign, newer, truncated, garbled, without_marks, directory]


@pytest.mark.parametrize("spoil", [*SPOILS, of_another_host] if machine_id() else SPOILS)
def test_an_unusable_database(spoil: Any, cli: Cli) -> None:
    """Exit 11 for every verb, before any storage is touched."""
    made = cli.volume("v")
    cli.fill("v", b"content")
    for suffix in ("-wal", "-shm"):
        Path(f"{cli.state}/volctl.db{suffix}").unlink(missing_ok=True)
    spoil(cli.state / "volctl.db")
    kept = sorted(cli.pool.iterdir())
    for words in (["list"], ["create", "w", "--size", "1M"], ["delete", made["id"], "--yes", "--force"], ["events"]):
        error = cli.error(11, "db", *words)
        assert "volctl.db" in error["message"]
        assert error["hint"]
    assert sorted(cli.pool.iterdir()) == kept
    assert (cli.pool / f"volume-{made['id']}").read_bytes()[:7] == b"content"


def test_a_database_that_another_command_closes_is_waited_for(cli: Cli, volctl: Volctl) -> None:
    """SQLite holds it alone meanwhile: longer than it waits by itself, where the disk is slow."""
    cli.volume("v")
    db = sqlite3.connect(cli.state / "volctl.db", isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("BEGIN EXCLUSIVE")
    freed = threading.Timer(1.5, db.close)
    freed.start()
    volctl("show", "v", status=0)
    assert freed.finished.is_set(), "it was held"


@pytest.mark.root
def test_what_others_mount_and_run_may_have_any_name(volctl: Volctl) -> None:
    """Names in /proc and /sys are bytes; some are line ends or blanks to whoever takes them for text."""
    volctl("create", "v", "--size", "1M", status=0)
    program = r"""
import os, subprocess, sys
home, volume, argv = os.fsencode(sys.argv[1]), sys.argv[2], sys.argv[3:]
odd = home + b"/\xff \xc2\xa0\xc2\x85\xe2\x80\xa8 \\x0b-"
os.mkdir(odd)
subprocess.run(["mount", "-t", "tmpfs", "none", odd], check=True)
with open(odd + b"/file", "wb") as file:
    file.truncate(1 << 20)
loop = subprocess.check_output(["losetup", "--show", "-f", odd + b"/file"], text=True).strip()
try:
    subprocess.run(["cp", "/bin/sleep", odd + b"/\xfe\xff"], check=True)
    held = subprocess.Popen([odd + b"/\xfe\xff", "60"], stdin=open(volume))
    codes = []
    for words in (["list"], ["delete", "v", "-y"], ["attach", "v"], ["doctor"], ["create", "--size", "1M"]):
        codes.append(subprocess.run([*argv, *words], stdout=subprocess.DEVNULL).returncode)
    held.kill(), held.wait()
    print(codes)
finally:
    subprocess.run(["losetup", "-d", loop], check=True)
    subprocess.run(["umount", odd], check=True)
"""
    volume = volctl("path", "v", status=0).out.strip()
    words = ["unshare", "--mount", sys.executable, "-c", program, str(volctl.home), volume, *volctl.argv]
    done = subprocess.run(words, env=volctl.environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[0, 5, 5, 0, 0]\n", done.stderr
    assert "internal error" not in done.stderr and "(pid" in done.stderr


def test_a_missing_database_beside_volumes(cli: Cli) -> None:
    cli.volume("v")
    database = cli.state / "volctl.db"
    kept = database.rename(cli.home / "kept.db")
    before = sorted(cli.pool.iterdir())
    for words in (["list"], ["create", "w", "--size", "1M"]):
        error = cli.error(11, "db", *words)
        assert "restore" in error["hint"]
    assert not database.exists()
    assert sorted(cli.pool.iterdir()) == before
    kept.rename(database)
    assert [volume["name"] for volume in cli.json("list")] == ["v"]


def test_a_missing_database_beside_volumes_elsewhere(cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "{cli.home}/pool"\n')
    cli("backend", "init", "a", "--yes")
    cli.volume("v")
    shutil.rmtree(cli.state)
    cli.error(11, "db", "create", "w", "--size", "1M")
    assert not (cli.state / "volctl.db").exists()


def test_a_missing_database_beside_nothing(cli: Cli) -> None:
    cli.volume("v")
    cli("delete", "v", "--yes")
    (cli.state / "volctl.db").unlink()
    cli.volume("v")


DIE = """
import os, sys
from volctl.cli import main
from volctl.db import migrations, store
def die(*given):
    os._exit(9)
if sys.argv[1] == "building":
    real = migrations.apply
    migrations.apply = lambda tx, version: (real(tx, version), die())
elif sys.argv[1] == "marked":
    store.keep_owner = die
else:
    store.probe = lambda point: point == sys.argv[1] and die()
main(["create", "v", "--size", "1M"])
"""


@pytest.mark.parametrize("where", ["building", "marked", "before rename", "before commit", "after commit"])
def test_a_first_run_that_is_killed(where: str, cli: Cli, volctl: Volctl) -> None:
    done = subprocess.run([sys.executable, "-c", DIE, where], env=volctl.environment, check=False)
    assert done.returncode == 9
    database = cli.state / "volctl.db"
    assert not database.exists() or rows(database) is not None
    cli.volume("w")
    assert [volume["name"] for volume in cli.json("list", "--status", "available")] == ["w"]
    assert not list(cli.state.glob(".volctl.db*"))
    assert len(list(cli.pool.glob("volume-*"))) == 1


def test_first_runs_killed_at_any_time(cli: Cli, volctl: Volctl) -> None:
    for number in range(4):
        words = [sys.executable, "-m", "volctl", "create", "v", "--size", "1M"]
        program = subprocess.Popen(words, env=volctl.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while not cli.state.exists() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(number * 0.012)
        program.kill()
        program.wait()
        left = cli("list", "--json").json()
        assert [volume["status"] for volume in left] in ([], ["error"], ["available"])
        assert len(list(cli.pool.glob("volume-*"))) == sum(volume["status"] == "available" for volume in left)
        shutil.rmtree(cli.state)


def test_history_is_pruned(cli: Cli) -> None:
    cli.volume("v")
    cli.configure("history_days = 0\n")
    time.sleep(0.01)
    cli.volume("w")
    objects = {event["object"] for event in cli.json("events")}
    assert objects == {cli.json("show", "w")["id"]}
    assert {flow["object"] for flow in cli.json("flow", "list", "--all")} == objects


def test_an_ordinary_user_needs_nothing(as_user: Volctl) -> None:
    """No root, no configuration, no directory prepared: the first volume."""
    for variable, state in (("XDG_STATE_HOME", "somewhere/volctl"), ("XDG_IGNORED", ".local/state/volctl")):
        home = {"HOME": str(as_user.home), variable: str(as_user.home / "somewhere")}
        path = {name: as_user.environment[name] for name in ("PATH", "PYTHONPATH")}
        mine = Volctl(as_user.argv, as_user.home, home | path)
        made = mine("create", "first", "--size", "1M", "--json").json()
        file = Path(mine("path", "first").out.strip())
        assert file == as_user.home / state / "volumes" / f"volume-{made['id']}"
        assert file.stat().st_size == MiB
        assert file.stat().st_uid == (NOBODY if os.geteuid() == 0 else os.geteuid())
        mine("snapshot", "create", "first", "s")
        mine("delete", "first", "--yes", "--cascade")


@pytest.mark.root
def test_an_ordinary_user_in_a_directory_that_is_closed(as_user: Volctl) -> None:
    as_user("list")
    for path in as_user.state.iterdir():
        os.chown(path, 0, 0)
    os.chown(as_user.state, 0, 0)
    ran = as_user("list", "--json", status=9)
    assert '"permission"' in ran.err
    assert "VOLCTL_STATE_DIR" in ran.err


@pytest.mark.root
def test_root_keeps_the_owner(as_user: Volctl) -> None:
    as_user("create", "mine", "--size", "1M")
    root = Volctl([sys.executable, "-m", "volctl"], as_user.home, environment(as_user.home, PYTHONPATH=str(REPO)))
    root("create", "roots", "--from-volume", "mine")
    root("snapshot", "create", "mine", "s")
    (as_user.home / "disk.raw").write_bytes(b"x" * MiB)
    root("image", "add", "i", as_user.home / "disk.raw", "--copy")
    strangers = [path for path in (as_user.state, *as_user.state.rglob("*")) if path.stat().st_uid != NOBODY]
    assert strangers == []
    as_user("extend", "roots", "2M")
    as_user("revert", "mine", "s", "--yes")
    as_user("create", "again", "--from-image", "i")
    root("delete", "mine", "--cascade", "--yes")
    as_user("delete", "roots", "again", "--yes")


@pytest.mark.root
def test_what_root_keeps_beside_a_users_volume_is_the_users(as_user: Volctl) -> None:
    disks = f'[[backend]]\nname = "disks"\nkind = "qcow2"\ndirectory = "{as_user.home}/disks"\n'
    (as_user.home / "config.toml").write_text(disks)
    as_user("backend", "init", "disks", "--yes")
    as_user("create", "v", "--size", "1M")
    root = Volctl([sys.executable, "-m", "volctl"], as_user.home, environment(as_user.home, PYTHONPATH=str(REPO)))
    root("set", "v", "--property", "key=value")
    for path in as_user.state.glob("volctl.db*"):
        path.unlink()
    as_user("doctor", "--rebuild", "--yes")
    assert as_user("show", "v", "--json").json()["properties"] == {"key": "value"}


@pytest.mark.root
def test_root_makes_a_state_directory_in_a_users_home(as_user: Volctl) -> None:
    root = Volctl([sys.executable, "-m", "volctl"], as_user.home, environment(as_user.home, PYTHONPATH=str(REPO)))
    root("create", "roots", "--size", "1M")
    as_user("delete", "roots", "--yes")
    assert {path.stat().st_uid for path in as_user.state.rglob("*")} == {NOBODY}


@pytest.mark.parametrize("name", ["a b", "x?y=1&mode=ro", "50%20#z", "q'\"`$(id)", "日本", "file:x"])
def test_a_state_directory_of_any_name(name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLCTL_STATE_DIR", str(cli.home / name))
    made = cli.volume("v")
    assert cli.file("v") == cli.home / name / "volumes" / f"volume-{made['id']}"
    assert (cli.home / name / "volctl.db").stat().st_size > 0
    assert sorted(path.name for path in cli.home.iterdir()) == sorted([name, "config.toml"])


@pytest.mark.root
def test_no_home(tmp_path: Path, as_user: Volctl) -> None:
    """An id without an entry in passwd, as containers have it."""
    nobody = [word.replace(str(NOBODY), "54321") for word in as_user.argv]
    path = {name: as_user.environment[name] for name in ("PATH", "PYTHONPATH")}
    ran = Volctl(nobody, tmp_path.parents[1], path)("list", status=2, cwd=Path("/"))
    assert "VOLCTL_STATE_DIR" in ran.err


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """A file system of 24 MiB."""
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.root
def test_a_full_disk(small: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLCTL_STATE_DIR", str(small / "state"))
    image = cli.home / "disk.raw"
    image.write_bytes(os.urandom(30 * MiB))
    assert "CapacityFilter" in cli.error(6, "no_backend", "create", "v", "--from-image", image)["message"]
    cli("delete", "v", "--yes")
    cli.volume("base", "--size", "14M")
    cli.fill("base", os.urandom(14 * MiB))
    cli.error(6, "no_backend", "create", "copy", "--from-volume", "base")
    cli.error(6, "no_space", "snapshot", "create", "base", "s")
    assert cli.json("snapshot", "show", "s")["status"] == "error"
    assert len(list((small / "state" / "volumes").glob("*-*"))) == 1
    with (small / "fill").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    error = cli.error(6, "no_space", "create", "w", "--size", "1M")
    assert "volctl.db" in error["message"]
    (small / "fill").unlink()
    assert {volume["name"]: volume["status"] for volume in cli.json("list")} == {"base": "available", "copy": "error"}

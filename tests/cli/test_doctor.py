"""`doctor`: damage done by hand is named and put right, and what is not ours or what lives is left alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, MiB, make_image
from tests.conftest import Volctl
from tests.web import until
from volctl.service.doctor import Finding, repair
from volctl.service.session import Options, Watcher, open_session

FIELDS = ["kind", "object", "id", "name", "backend", "problem", "fix", "deletes", "fixed"]
CONFIG = '[[backend]]\nname = "a"\nkind = "{kind}"\ndirectory = "{home}/a"\n'


@dataclass(frozen=True, slots=True)
class Damaged:
    """Volumes `data` (snapshot `snap`), `other` and image `img` on a prepared pool, before the damage."""

    cli: Cli

    @property
    def pool(self) -> Path:
        return self.cli.home / "a"

    def id(self, name: str) -> str:
        verb = ["snapshot", "show"] if name == "snap" else ["image", "list"] if name == "img" else ["show"]
        found = self.cli.json(*verb) if name == "img" else self.cli.json(*verb, name)
        return str(found[0]["id"] if name == "img" else found["id"])

    def file(self, name: str) -> Path:
        return self.pool / f"{'snap' if name == 'snap' else 'volume'}-{self.id(name)}"

    def sql(self, text: str, *values: object) -> None:
        with closing(sqlite3.connect(self.cli.state / "volctl.db")) as db, db:
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute(text, values)

    def half_made(self, name: str) -> None:
        """Without what it is about, which a file carries when it is whole."""
        (self.pool / f".volctl-{self.file(name).name}").unlink(missing_ok=True)
        with suppress(OSError):
            os.removexattr(self.file(name), "user.volctl")

    def stray(self, kind: str = "volume") -> Path:
        path = self.pool / f"{kind}-{uuid.uuid4()}"
        path.write_bytes(b"x" * MiB)
        return path


@pytest.fixture(params=["loop", "fake"])
def damaged(request: pytest.FixtureRequest, cli: Cli) -> Damaged:
    return furnish(cli, request.param)


def furnish(cli: Cli, kind: str) -> Damaged:
    cli.configure(CONFIG.format(kind=kind, home=cli.home))
    cli("backend", "init", "a", "--yes")
    make_image(cli.home / "disk.raw", b"image", MiB, "raw")
    cli("image", "add", "img", "disk.raw", "--copy")
    for name in ("data", "other"):
        cli.volume(name, "--size", "2M")
    cli.fill("other", b"precious")
    cli("snapshot", "create", "data", "snap")
    (cli.home / "a" / "notes.txt").write_text("not ours")
    (cli.home / "a" / "a-link").symlink_to("notes.txt")
    return Damaged(cli)


Damage = Callable[[Damaged], str]
"""Does it, and gives a word that the finding must have."""
DAMAGES: dict[str, Damage] = {}


def damage(kind: str) -> Callable[[Damage], Damage]:
    def keep(function: Damage) -> Damage:
        DAMAGES[f"{kind}: {function.__name__.replace('_', ' ')}"] = function
        return function

    return keep


@damage("volume_object")
def a_volume_file_is_removed(at: Damaged) -> str:
    at.file("data").unlink()
    return at.id("data")


@damage("volume_object")
def a_volume_file_is_cut(at: Damaged) -> str:
    os.truncate(at.file("data"), MiB)
    return at.id("data")


@damage("volume_object")
def a_volume_file_has_grown(at: Damaged) -> str:
    os.truncate(at.file("data"), 5 * MiB + 1)
    return at.id("data")


@damage("volume_object")
def a_volume_file_is_a_symlink_now(at: Damaged) -> str:
    file = at.file("data")
    file.rename(at.pool / "moved")
    file.symlink_to("moved")
    return at.id("data")


@damage("volume_object")
def a_volume_file_is_renamed(at: Damaged) -> str:
    at.file("data").rename(at.pool / "data.raw")
    return at.id("data")


@damage("snapshot_object")
def a_snapshot_file_is_removed(at: Damaged) -> str:
    at.file("snap").unlink()
    return at.id("snap")


@damage("snapshot_object")
def a_snapshot_file_is_cut(at: Damaged) -> str:
    os.truncate(at.file("snap"), 4096)
    return at.id("snap")


@damage("orphan")
def a_volume_file_that_nobody_knows(at: Damaged) -> str:
    return at.stray().name


@damage("orphan")
def a_snapshot_file_that_nobody_knows(at: Damaged) -> str:
    return at.stray("snap").name


@damage("orphan")
def the_row_of_a_volume_is_deleted(at: Damaged) -> str:
    found = at.id("other")
    at.sql("DELETE FROM volumes WHERE name = 'other'")
    return found


@damage("orphan")
def the_row_of_a_snapshot_is_deleted(at: Damaged) -> str:
    found = at.id("snap")
    at.sql("DELETE FROM snapshots")
    return found


@damage("orphan")
def the_row_of_a_volume_with_a_snapshot_is_deleted(at: Damaged) -> str:
    found = at.id("data")
    at.sql("DELETE FROM volumes WHERE name = 'data'")
    return found


@damage("reference")
def a_volume_and_the_files_of_its_snapshot_are_gone(at: Damaged) -> str:
    found = at.id("snap")
    at.file("snap").unlink()
    at.file("data").unlink()
    at.sql("DELETE FROM volumes WHERE name = 'data'")
    return found


@damage("leftover")
def half_a_revert(at: Damaged) -> str:
    shutil.copy(at.file("snap"), at.pool / f"revert-{at.id('data')}")
    return f"revert-{at.id('data')}"


@damage("leftover")
def half_a_marker(at: Damaged) -> str:
    (at.pool / ".volctl.new").write_text("{")
    return ".volctl.new"


@damage("leftover")
def half_a_database(at: Damaged) -> str:
    (at.cli.state / ".volctl.db.new-wal").write_text("x")
    return ".volctl.db.new"


@damage("status")
def a_volume_is_creating_for_ever(at: Damaged) -> str:
    at.sql("UPDATE volumes SET status = 'creating' WHERE name = 'data'")
    return at.id("data")


@damage("status")
def a_snapshot_is_deleting_for_ever(at: Damaged) -> str:
    at.sql("UPDATE snapshots SET status = 'deleting'")
    return at.id("snap")


@damage("attachment")
def a_volume_is_in_use_by_nobody(at: Damaged) -> str:
    at.sql("UPDATE volumes SET status = 'in-use' WHERE name = 'data'")
    return at.id("data")


@damage("attachment")
def a_device_that_is_no_more(at: Damaged) -> str:
    found = at.id("data")
    there = [{"device": "/dev/loop4242", "read_only": False, "attached_at": "2026-01-01T00:00:00Z", "sector_size": 512}]
    at.sql("UPDATE volumes SET status = 'in-use', attachments = ? WHERE name = 'data'", json.dumps(there))
    return found


@damage("reservation")
def quota_that_nobody_gives_back(at: Damaged) -> str:
    at.sql("INSERT INTO reservations VALUES ('r', 'default', NULL, NULL, 1, 0, 1048576)")
    return "r"


@damage("reference")
def a_type_that_is_gone(at: Damaged) -> str:
    at.sql("UPDATE volumes SET type = 'gold' WHERE name = 'data'")
    return "gold"


@damage("image")
def the_copy_of_an_image_is_removed(at: Damaged) -> str:
    (at.cli.state / "images" / at.id("img")).unlink()
    return at.id("img")


@damage("image")
def the_copy_of_an_image_is_another_file(at: Damaged) -> str:
    with (at.cli.state / "images" / at.id("img")).open("r+b") as file:
        file.write(b"other")
    return at.id("img")


@damage("orphan")
def an_image_file_that_nobody_knows(at: Damaged) -> str:
    name = str(uuid.uuid4())
    (at.cli.state / "images" / name).write_bytes(b"x" * 100)
    return name


@damage("orphan")
def what_an_abandoned_create_left(at: Damaged) -> str:
    for name in ("data", "other"):
        at.half_made(name)
    at.sql('UPDATE volumes SET status = \'error\', available_at = NULL, fault = \'{"code": "x", "message": "y"}\'')
    return at.id("other")


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_put_right(name: str, damaged: Damaged) -> None:
    cli = damaged.cli
    assert cli.json("doctor") == []
    word = DAMAGES[name](damaged)
    before = strangers(damaged)
    named(cli, name.split(":")[0], word)
    fixed = cli.json("doctor", "--fix", "--yes")
    assert fixed and all(finding["fixed"] for finding in fixed)
    assert cli.json("doctor") == []
    assert strangers(damaged) == before
    assert cli("doctor").out == ""
    assert all(not line["reserved"] for line in cli.json("quota", "show"))


def named(cli: Cli, kind: str, word: str) -> Any:
    """Exit 12, and the finding about it."""
    ran = cli("doctor", "--json", status=12)
    assert json.loads(ran.err.splitlines()[-1])["error"]["code"] == "drift"
    found = ran.json()
    assert all(list(finding) == FIELDS for finding in found)
    mine = [finding for finding in found if finding["kind"] == kind and word in (finding["id"], finding["object"])]
    assert mine, found
    assert all(finding["problem"] and finding["fix"] and not finding["fixed"] for finding in mine)
    return mine[0]


def strangers(at: Damaged) -> dict[str, object]:
    """What is not ours, with its content, and the volume that no damage but that to rows is done to."""
    ours = ("volume-", "snap-", "revert-", ".volctl", "calls")
    paths = [path for path in at.pool.iterdir() if not path.name.startswith(ours) or path.is_symlink()]
    found: dict[str, object] = {path.name: path.read_bytes() for path in paths if not path.is_symlink()}
    found |= {path.name: os.readlink(path) for path in paths if path.is_symlink()}
    with closing(sqlite3.connect(at.cli.state / "volctl.db")) as db:  # to list them would put attachments right
        whole = db.execute("SELECT id FROM volumes WHERE name = 'other' AND status = 'available'").fetchall()
    return found | {volume: (at.pool / f"volume-{volume}").read_bytes()[:8] for (volume,) in whole}


def test_nothing_is_deleted_unless_it_was_agreed_to(damaged: Damaged) -> None:
    cli, stray = damaged.cli, damaged.stray()
    os.truncate(damaged.file("data"), MiB)
    ran = cli("doctor", "--fix", "--json", status=12)
    assert {(finding["kind"], finding["fixed"]) for finding in ran.json()} == {
        ("volume_object", True),
        ("orphan", False),
    }
    assert "--yes" in ran.err
    assert stray.read_bytes() == b"x" * MiB
    assert cli.json("show", "data")["fault"]["code"] == "drift"
    cli("doctor", "--fix", "--yes")
    assert not stray.exists()
    cli("delete", "data", "--cascade", "--yes")


def test_what_is_there_again_is_available_again(damaged: Damaged) -> None:
    """Volumes and snapshots that are in error only because something was missing, as long as it is."""
    cli = damaged.cli
    for name in ("data", "snap"):
        damaged.file(name).rename(damaged.pool / f"{name}.away")
    os.truncate(damaged.file("other"), MiB)
    cli("doctor", "--fix")
    assert cli.json("doctor") == []
    for name in ("data", "snap"):
        (damaged.pool / f"{name}.away").rename(damaged.file(name))
    found = cli.json("doctor", status=12)
    assert [(each["kind"], each["id"], each["deletes"]) for each in found] == [
        ("status", damaged.id(name), False) for name in ("data", "snap")
    ]
    assert all("is not there" in each["problem"] and "available" in each["fix"] for each in found)
    cli("doctor", "--fix")
    assert cli.json("doctor") == []
    data, snap, other = cli.json("show", "data"), cli.json("snapshot", "show", "snap"), cli.json("show", "other")
    assert [(each["status"], each["fault"]) for each in (data, snap)] == [("available", None)] * 2
    assert other["status"] == "error"
    cli("create", "again", "--from-snapshot", "snap", "--backend", "a")
    damaged.sql(
        "UPDATE volumes SET status = 'error', fault = ? WHERE name = 'data'", '{"code": "backend", "message": ""}'
    )
    assert cli.json("doctor") == [], "what work left may be half done"


def test_a_volume_that_grew_takes_its_size_within_the_quota(damaged: Damaged) -> None:
    cli = damaged.cli
    os.truncate(damaged.file("data"), 4 * MiB - 512)
    cli("quota", "set", "--per-volume-gigabytes", "0")
    ran = cli("doctor", "--fix", "--json", status=12)
    assert "quota per_volume_gigabytes" in ran.json()[0]["problem"]
    assert (cli.json("show", "data")["size"], cli.json("show", "data")["status"]) == (2 * MiB, "available")
    cli("quota", "set", "--per-volume-gigabytes", "-1")
    cli("doctor", "--fix")
    assert cli.json("show", "data")["size"] == damaged.file("data").stat().st_size == 4 * MiB


def test_what_others_hold_is_left(damaged: Damaged, volctl: Volctl) -> None:
    cli, stray = damaged.cli, damaged.stray()
    with stray.open("rb") as file:
        holder = subprocess.Popen(["sleep", "600"], stdin=file)
    try:
        ran = volctl("doctor", "--fix", "--yes", "--json", status=12)  # whose child the holder is not
        assert f"sleep (pid {holder.pid})" in ran.json()[0]["problem"]
        assert stray.exists()
    finally:
        holder.kill()
        holder.wait()
    cli("doctor", "--fix", "--yes")
    assert not stray.exists()


def test_what_is_foreign_is_listed_on_request(damaged: Damaged) -> None:
    found = damaged.cli.json("doctor", "--foreign", "--fix", "--yes")
    assert [(finding["kind"], finding["object"], finding["fix"]) for finding in found] == [
        ("foreign", "a-link", None),
        ("foreign", "notes.txt", None),
    ]


def test_a_backend_that_is_not_there_is_one_difference(damaged: Damaged) -> None:
    cli = damaged.cli
    damaged.pool.rename(cli.home / "elsewhere")
    damaged.pool.mkdir()
    ran = cli("doctor", "--fix", "--yes", "--json", status=12)
    assert [(finding["kind"], finding["object"], finding["fix"]) for finding in ran.json()] == [("backend", "a", None)]
    assert list(damaged.pool.iterdir()) == []
    damaged.pool.rmdir()
    (cli.home / "elsewhere").rename(damaged.pool)
    assert {volume["status"] for volume in cli.json("list")} == {"available"}
    assert cli.json("doctor") == []


def test_a_backend_that_is_not_configured(damaged: Damaged) -> None:
    damaged.cli.configure("")
    ran = damaged.cli("doctor", "--fix", "--yes", "--json", status=12)
    assert {(finding["kind"], finding["backend"]) for finding in ran.json()} == {("backend_unknown", "a")}


POOL = '[[backend]]\nname = "{}"\nkind = "{}"\ndirectory = "{}"\n'


def pool(at: Damaged, name: str, directory: str = "a") -> str:
    kind = re.search('kind = "(.*)"', (at.cli.home / "config.toml").read_text())
    assert kind
    return POOL.format(name, kind[1], at.cli.home / directory)


def renamed(at: Damaged) -> None:
    at.cli.configure(pool(at, "files"))


def swapped(at: Damaged) -> None:
    at.cli.configure(pool(at, "a") + pool(at, "b", "b"))
    at.cli("backend", "init", "b", "--yes")
    at.cli.configure(pool(at, "b") + pool(at, "a", "b"))


def copied(at: Damaged) -> None:
    """And the first one is not mounted."""
    at.pool.rename(at.cli.home / "b")
    at.pool.mkdir()
    at.cli.configure(pool(at, "a") + pool(at, "b", "b"))


def on_no_backend(at: Damaged) -> None:
    at.sql("UPDATE volumes SET backend = NULL")


@pytest.mark.parametrize("change", [renamed, swapped, copied, on_no_backend])
def test_what_has_a_row_is_deleted_nowhere_unless_its_own_backend_holds_it(
    change: Callable[[Damaged], None], damaged: Damaged
) -> None:
    cli = damaged.cli
    before, files = cli.home.joinpath("config.toml").read_text(), [damaged.file(name) for name in ("data", "snap")]
    cli("set", "data", "--description", "kept")
    change(damaged)
    there = [cli.home / ("b" if change is copied else "a") / file.name for file in files]
    ran = cli("doctor", "--json", status=12)
    found = {each["object"]: each for each in ran.json() if each["kind"] == "orphan"}
    assert len(found) == 3 and all(file.name in found for file in files)
    assert all("its row says" in each["problem"] and not each["deletes"] and not each["fix"] for each in found.values())
    assert "--yes" not in ran.err
    for _ in range(2):
        cli("doctor", "--fix", "--yes", status=12)
        assert all(file.exists() for file in there)
    if change is on_no_backend:
        damaged.sql("UPDATE volumes SET backend = 'a'")
    elif change is copied:
        damaged.pool.rmdir()
        (cli.home / "b").rename(damaged.pool)
    cli.configure(before)
    cli("doctor", "--fix")
    assert {each["status"] for each in (*cli.json("list"), *cli.json("snapshot", "list"))} == {"available"}


def test_a_second_one_beside_that_on_its_own_backend_is_an_orphan(damaged: Damaged) -> None:
    cli = damaged.cli
    cli.configure(pool(damaged, "a") + pool(damaged, "b", "b"))
    cli("backend", "init", "b", "--yes")
    second = [cli.home / "b" / damaged.file(name).name for name in ("data", "snap")]
    for path in second:
        shutil.copy(damaged.pool / path.name, path)
    found = cli.json("doctor", status=12)
    assert {(each["kind"], each["object"], each["backend"]) for each in found} == {
        ("orphan", path.name, "b") for path in second
    }
    cli("doctor", "--fix", "--yes")
    assert not any(path.exists() for path in second)
    assert cli.json("doctor") == []


NEVER = 'UPDATE volumes SET status = \'error\', available_at = NULL, fault = \'{"code": "x", "message": "y"}\''


def test_what_is_whole_is_not_what_a_failed_create_left(damaged: Damaged) -> None:
    """The rows are those of a backup that was made during the create, which then ended well."""
    cli, file = damaged.cli, damaged.file("other")
    damaged.sql(f"{NEVER} WHERE name = 'other'")
    cli.error(5, "conflict", "create", "other", "--size", "2M", "--if-absent")
    found = named(cli, "status", damaged.id("other"))
    assert not found["deletes"] and "available" in found["fix"]
    cli("set", "other", "--description", "x")
    cli("doctor", "--fix", "--yes")
    assert file.read_bytes().startswith(b"precious")
    assert cli.json("show", "other")["status"] == "available" and cli.json("show", "other")["available_at"]
    assert cli.json("doctor") == []


@pytest.mark.parametrize("half", ["undescribed", "cut"])
def test_what_is_not_whole_is_not_available_whatever_is_said_of_it(half: str, damaged: Damaged) -> None:
    cli, file = damaged.cli, damaged.file("other")
    if half == "cut":
        os.truncate(file, MiB)
    else:
        damaged.half_made("other")
    damaged.sql(f"{NEVER} WHERE name = 'other'")
    cli("set", "other", "--description", "x")  # which is not for its object
    found = named(cli, "orphan", damaged.id("other"))
    assert found["deletes"] and "failed create" in found["problem"]
    cli("doctor", "--fix", "--yes")
    assert not file.exists()


def test_what_is_whole_on_another_backend_than_that_of_a_failed_create(damaged: Damaged) -> None:
    file = damaged.file("other")
    damaged.sql(f"{NEVER}, backend = 'b' WHERE name = 'other'")
    damaged.cli("doctor", "--fix", "--yes", status=12)
    assert file.exists()


@pytest.mark.parametrize("change", [renamed, swapped])
def test_a_cached_image_is_deleted_nowhere_either(change: Callable[[Damaged], None], cli: Cli) -> None:
    cli.configure(CONFIG.format(kind="fake", home=cli.home) + 'clone = "share"\n')
    cli("backend", "init", "a", "--yes")
    cli.volume("v", "--from-image", make_image(cli.home / "disk.raw", b"image", MiB, "raw"))
    (cached,) = (cli.home / "a").glob("image-*")
    change(Damaged(cli))
    for _ in range(2):
        cli("doctor", "--fix", "--yes", status=12)
        assert cached.exists()
    cli.configure(CONFIG.format(kind="fake", home=cli.home))
    cli("doctor", "--fix")
    assert [entry["id"] for entry in cli.json("image", "cache", "list")] == [cached.name.removeprefix("image-")]


def test_a_second_one_that_is_the_last_by_now_is_left(damaged: Damaged) -> None:
    cli = damaged.cli
    cli.configure(pool(damaged, "a") + pool(damaged, "b", "b"))
    cli("backend", "init", "b", "--yes")
    first, second = damaged.file("data"), cli.home / "b" / damaged.file("data").name
    first.rename(second)
    first.write_bytes(second.read_bytes())

    def agreed(finding: Finding) -> bool:
        first.unlink()
        return True

    with open_session(Options(), Watcher()) as session:
        (left,) = repair(session, agreed)
    assert "not put right" in left.problem and second.exists()


def test_health_is_told_with_v(damaged: Damaged) -> None:
    assert re.search(r"backend a \((loop|fake)\), 2 volumes, .* free: well", damaged.cli("doctor", "-v").err)


def test_a_damaged_index_is_no_difference_but_an_unusable_database(damaged: Damaged) -> None:
    damaged.sql("PRAGMA writable_schema = 1")
    with closing(sqlite3.connect(damaged.cli.state / "volctl.db")) as db, db:
        db.execute("PRAGMA writable_schema = 1")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'source_id', 'name') WHERE name = 'volumes_source'")
    assert damaged.cli.error(11, "db", "doctor")["hint"]


@pytest.fixture
def fake(cli: Cli) -> Damaged:
    return furnish(cli, "fake")


def test_a_stuck_flow_is_tried_again(fake: Damaged) -> None:
    cli = fake.cli
    (fake.pool / "fail").write_text(json.dumps({"delete": "no such luck"}))
    cli("delete", "other", "--yes", status=8)
    found = named(cli, "flow", cli.json("flow", "list")[0]["id"])
    assert "no such luck" in found["problem"]
    ran = cli("doctor", "--fix", "--yes", "--json", status=12)
    assert "not put right: " in ran.json()[0]["problem"]
    (fake.pool / "fail").unlink()
    assert [finding["fixed"] for finding in cli.json("doctor", "--fix")] in ([True], [])
    assert [volume["name"] for volume in cli.json("list")] == ["data"]
    assert cli.json("doctor") == []


@pytest.mark.parametrize("words", ["create new --size 3M", "delete other -y", "snapshot create other s"])
def test_the_work_of_a_live_command_is_no_difference(words: str, fake: Damaged, volctl: Volctl) -> None:
    call = words.split()[0]
    go = fake.cli.home / "go"
    (fake.pool / "fail").write_text(json.dumps({call: {"wait": str(go), "after": call != "delete"}}))
    live = subprocess.Popen([*volctl.argv, *words.split()], env=volctl.environment, stdout=subprocess.DEVNULL)
    calls = fake.pool / "calls"
    until(lambda: f'"call": "{call}"' in calls.read_text().splitlines()[-1])
    for _ in range(3):
        assert fake.cli.json("doctor", "--fix", "--yes") == []
    assert live.poll() is None
    go.touch()
    assert live.wait() == 0
    assert fake.cli.json("doctor") == []


@pytest.fixture
def attached(cli: Cli) -> Iterator[tuple[Damaged, str]]:
    """`data` on loop files, attached."""
    at = furnish(cli, "loop")
    device = cli("attach", "data", "-o", "value").out.strip()
    yield at, device
    subprocess.run(["losetup", "-d", device], capture_output=True, check=False)


@pytest.mark.root
def test_a_device_that_was_taken_away(attached: tuple[Damaged, str]) -> None:
    at, device = attached
    assert at.cli.json("doctor") == []
    data = at.id("data")
    subprocess.run(["losetup", "-d", device], check=True)
    assert device in named(at.cli, "attachment", data)["problem"]
    at.cli("doctor", "--fix")
    assert at.cli.json("show", "data")["status"] == "available"
    assert at.cli.json("doctor") == []


@pytest.mark.root
def test_a_device_that_no_row_knows(attached: tuple[Damaged, str]) -> None:
    at, device = attached
    at.sql("UPDATE volumes SET status = 'available', attachments = '[]' WHERE name = 'data'")
    assert device in named(at.cli, "device", at.id("data"))["problem"]
    with open(device, "rb"):
        ran = at.cli("doctor", "--fix", "--json", status=12)
        assert "not put right" in ran.json()[0]["problem"]
    at.cli("doctor", "--fix")
    assert not devices_over(at.file("data"))
    assert at.cli.json("doctor") == []


@pytest.mark.root
def test_a_device_is_left_while_its_backend_has_another_name(attached: tuple[Damaged, str]) -> None:
    at, device = attached
    renamed(at)
    at.cli("doctor", "--fix", "--yes", status=12)
    assert devices_over(at.pool / f"volume-{at.id('data')}") == [device]
    at.cli.configure(CONFIG.format(kind="loop", home=at.cli.home))
    assert at.cli.json("doctor") == []


@pytest.mark.root
def test_the_last_bytes_of_a_file_are_in_its_device(attached: tuple[Damaged, str]) -> None:
    at, device = attached
    file = at.file("data")
    file.unlink()
    ran = at.cli("doctor", "--fix", "--json", status=12)
    assert {finding["kind"]: finding["fixed"] for finding in ran.json()} == {"volume_object": True, "device": False}
    assert devices_over(file) == [device]
    at.cli("doctor", "--fix", "--yes")
    assert devices_over(file) == []
    assert at.cli.json("doctor") == []


@pytest.mark.root
def test_a_device_of_somebody_else_is_left(attached: tuple[Damaged, str]) -> None:
    at, _ = attached
    file = at.file("other")
    words = ["losetup", "-f", "--show", str(file)]
    theirs = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    try:
        assert at.cli.json("doctor", "--fix", "--yes") == []
        assert devices_over(file) == [theirs]
    finally:
        subprocess.run(["losetup", "-d", theirs], check=True)


def devices_over(file: Path) -> list[str]:
    listed = subprocess.run(
        ["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"], capture_output=True, errors="replace", check=True
    )
    return [line.split()[0] for line in listed.stdout.splitlines() if str(file) in line]

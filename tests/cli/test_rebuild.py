"""The database is lost and made again from what the objects carry: ids, names, sizes, types, the snapshot tree.

`VOLCTL_POPULATIONS` says how many random ones of each kind (10 of loop files, 5 of the others), the seed which.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MiB
from tests.conftest import LIMIT, Volctl, await_blocked
from tests.populations import World, come_back_equal
from tests.sampling import SEED

CONFIG = '[[backend]]\nname = "{kind}"\nkind = "{kind}"\ndirectory = "{home}/{kind}"\n'
BATCH = 5
BATCHES = int(os.environ.get("VOLCTL_POPULATIONS", "0")) // BATCH
EACH = [(kind, batch) for kind, few in (("loop", 2), ("fake", 1), ("qcow2", 1)) for batch in range(BATCHES or few)]


@pytest.mark.parametrize(("kind", "batch"), EACH)
def test_random_populations_come_back_equal(
    kind: str, batch: int, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    if kind == "qcow2" and not shutil.which("qemu-img"):
        pytest.skip("needs qemu-img (qemu-utils)")
    for number in range(BATCH):
        world = World(tmp_path / str(number), kind, directory=str(tmp_path / str(number) / kind))
        come_back_equal(world, f"{SEED} {kind} {batch * BATCH + number}", partial(_contents, world.home / kind))
        shutil.rmtree(world.home)
    record_property("counted", f"{BATCH} {BATCH} populations on {kind}")


def _contents(pool: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pool.iterdir() if path.name != "calls"}


def lose(cli: Cli) -> None:
    for path in cli.state.glob("volctl.db*"):
        path.unlink()


def test_cached_images_are_known_no_more_and_go_first(cli: Cli) -> None:
    """On qcow2 volumes lie over them, so they are not orphans."""
    cli.configure(CONFIG.format(kind="qcow2", home=cli.home))
    cli("backend", "init", "qcow2", "--yes")
    (cli.home / "disk.raw").write_bytes(random.Random(1).randbytes(MiB))
    cli("create", "v", "--from-image", "disk.raw")
    (image,) = (cli.home / "qcow2").glob("image-*")
    lose(cli)
    cli("doctor", "--rebuild", "--yes")
    assert cli.json("doctor") == []
    assert [entry["id"] for entry in cli.json("image", "cache", "list")] == [image.name.removeprefix("image-")]
    cli("create", "w", "--from-image", "disk.raw")
    assert len(cli.json("image", "cache", "list")) == 2
    cli("delete", "v", "w", "--yes")
    cli("image", "cache", "prune", "--yes")
    assert cli.json("doctor") == []


def test_of_two_at_once_one_makes_it_and_the_other_leaves_it(cli: Cli, volctl: Volctl) -> None:
    """Both have looked, and wait to be alone in the state directory."""
    cli.volume("v")
    lose(cli)
    words = [*volctl.argv, "doctor", "--rebuild", "--yes"]
    descriptor = os.open(cli.state, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        both = [subprocess.Popen(words, env=volctl.environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        await_blocked(descriptor, 2)
    finally:
        os.close(descriptor)
    told = [one.communicate()[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 5], told
    assert not list(cli.state.glob("*.unusable-*"))
    assert [volume["name"] for volume in cli.json("list")] == ["v"]


def test_the_recipe_is_told_and_asked_for(cli: Cli) -> None:
    made = cli.volume("v")
    (cli.state / "volctl.db").unlink()  # its log stays, and must not be played into the new one
    assert "doctor --rebuild" in cli.error(11, "db", "list")["hint"]
    assert "--yes" in cli.error(2, "usage", "doctor", "--rebuild")["hint"]
    assert not (cli.state / "volctl.db").exists()
    told = cli.json("doctor", "--rebuild", "--yes")
    assert [(finding["kind"], finding["id"], finding["fixed"]) for finding in told] == [("rebuilt", made["id"], True)]
    assert [volume["id"] for volume in cli.json("list")] == [made["id"]]
    cli("create", "v", "--size", "1M", "--if-absent")
    cli("delete", "v", "--yes")


def test_a_usable_database_is_not_made_again(cli: Cli) -> None:
    cli.volume("v")
    before = cli.everything()
    cli.error(5, "conflict", "doctor", "--rebuild", "--yes")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        db.execute("PRAGMA user_version = 999")
    assert cli.error(11, "db", "doctor", "--rebuild", "--yes")["hint"] == "upgrade volctl"
    assert cli.everything() == before


def test_an_unusable_database_is_kept_aside(cli: Cli) -> None:
    made = cli.volume("v")
    database = cli.state / "volctl.db"
    database.write_bytes(b"rubbish" * 100)
    cli("doctor", "--rebuild", "--yes")
    assert [volume["id"] for volume in cli.json("list")] == [made["id"]]
    (aside,) = (path for path in cli.state.glob("volctl.db.unusable-*") if path.read_bytes() == b"rubbish" * 100)
    assert aside.name.startswith("volctl.db.unusable-")


CELLS = [
    "UPDATE volumes SET attachments = '[{'",
    "UPDATE volumes SET attachments = '[1]'",
    "UPDATE volumes SET status = 'foo'",
    "UPDATE volumes SET source_kind = 'zz'",
    "UPDATE volumes SET fault = '{\"code\": 1}'",
    "UPDATE flows SET state = '{', ended_at = NULL",
]


@pytest.mark.parametrize("damage", CELLS)
def test_a_damaged_cell(damage: str, cli: Cli) -> None:
    """SQLite finds nothing wrong, and no command can go on: the database is lost like any other."""
    made = cli.volume("v")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        db.execute(damage)
    commands = (["list"], ["create", "v", "--size", "1M"], ["doctor"])
    for words in commands:
        assert "rebuild" in cli.error(11, "db", *words)["hint"]
    cli("doctor", "--rebuild", "--yes")
    assert [volume["id"] for volume in cli.json("list")] == [made["id"]]
    assert cli.json("doctor") == []


@pytest.mark.parametrize("damage", ["UPDATE events SET payload = '{'", "UPDATE volumes SET explanation = '{}'"])
def test_a_damaged_cell_that_few_commands_read(damage: str, cli: Cli) -> None:
    cli.volume("v")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        db.execute(damage)
    cli("list")
    cli.error(11, "db", "doctor")
    cli("doctor", "--rebuild", "--yes")


def test_a_damaged_backup_in_its_place_is_kept_aside(cli: Cli) -> None:
    made = cli.volume("v")
    cli("backup-db", "copy.db")
    lose(cli)
    shutil.copy(cli.home / "copy.db", cli.state / "volctl.db")
    os.truncate(cli.state / "volctl.db", 8192)
    cli.error(11, "db", "list")
    cli("doctor", "--rebuild", "--yes")
    assert [volume["id"] for volume in cli.json("list")] == [made["id"]]


def test_a_database_that_held_nothing(cli: Cli) -> None:
    """Its mark is what is left: the pool stays that of the database."""
    cli.configure(CONFIG.format(kind="loop", home=cli.home))
    cli("backend", "init", "loop", "--yes")
    cli.volume("v")
    cli("delete", "v", "--yes")
    (cli.state / "volctl.db").write_bytes(b"")
    cli.error(11, "db", "list")
    ran = cli("doctor", "--rebuild", "--yes", "--json")
    assert ran.json() == [] and "no volume" in ran.err
    assert cli.json("list") == [] and cli.json("doctor") == []
    cli.volume("w")


def test_nothing_to_make_it_of(cli: Cli) -> None:
    cli.error(4, "not_found", "doctor", "--rebuild", "--yes")
    assert not (cli.state / "volctl.db").exists()


def test_a_backend_that_is_not_mounted_is_not_forgotten(cli: Cli) -> None:
    cli.configure("".join(f'[[backend]]\nname = "{n}"\nkind = "loop"\ndirectory = "{cli.home}/{n}"\n' for n in "ab"))
    for name in "ab":
        cli("backend", "init", name, "--yes")
        cli.volume(f"v{name}", "--size", "1M", "--backend", name)
    lose(cli)
    (cli.home / "b").rename(cli.home / "away")
    cli.error(8, "backend", "doctor", "--rebuild", "--yes")
    assert not (cli.state / "volctl.db").exists()
    (cli.home / "away").rename(cli.home / "b")
    cli("doctor", "--rebuild", "--yes")
    assert [(volume["name"], volume["backend"]) for volume in cli.json("list")] == [("va", "a"), ("vb", "b")]


def test_what_cannot_be_known_is_said(cli: Cli) -> None:
    """A volume that carries nothing, a snapshot without its volume, a name that two carry."""
    bare, gone, one, two = (cli.volume(name) for name in ("bare", "gone", "one", "two"))
    taken = cli.json("snapshot", "create", "gone", "s")
    os.removexattr(cli.file("bare"), "user.volctl")
    attribute = os.getxattr(cli.file("one"), "user.volctl").replace(one["id"].encode(), two["id"].encode())
    os.setxattr(cli.file("two"), "user.volctl", attribute)
    cli.file("gone").unlink()
    lose(cli)
    told = {finding["id"]: finding["problem"] for finding in cli.json("doctor", "--rebuild", "--yes")}
    assert "may be half made" in told[bare["id"]] and "is not on any backend" in told[gone["id"]]
    assert sorted(told[item["id"]] for item in (one, two)) == ["another has its name 'one'", "made again"]
    after = {volume["id"]: volume for volume in cli.json("list")}
    assert {after[item["id"]]["status"] for item in (bare, gone)} == {"error"}
    assert "is not on any backend" in after[gone["id"]]["fault"]["message"]
    assert cli.json("snapshot", "show", "s")["volume_id"] == gone["id"] and taken["status"] == "available"
    cli("create", "again", "--from-snapshot", "s")
    assert cli.json("doctor") == []


NESTED = zlib.compress(b"[" * 1000000)


@pytest.mark.parametrize("carried", [b"", b"{", b"[]", b"\x78\x9c\xff", b'{"object": "volume-x"}', b"null", NESTED])
def test_what_an_object_carries_is_not_believed(carried: bytes, cli: Cli) -> None:
    made = cli.volume("v")
    os.setxattr(cli.file("v"), "user.volctl", carried)
    lose(cli)
    cli("doctor", "--rebuild", "--yes")
    assert cli.json("list")[0]["status"] == "error" and cli.json("list")[0]["id"] == made["id"]


def test_nor_is_what_is_not_of_its_kind(cli: Cli) -> None:
    made = cli.volume("v")
    wrong = {
        "name": "../x",
        "project": ["p"],
        "properties": {"a": 1},
        "type": "$(x)",
        "source_kind": "none",
        "specs": 1,
    }
    carried = {"object": f"volume-{made['id']}", **wrong, "created_at": 7, "bootable": "yes"}
    os.setxattr(cli.file("v"), "user.volctl", json.dumps(carried).encode())
    lose(cli)
    cli("doctor", "--rebuild", "--yes")
    (row,) = cli.json("list")
    assert (row["name"], row["project"], row["properties"], row["type"], row["source"]["kind"]) == (
        None, "default", {}, None, "blank",
    )  # fmt: skip


def test_a_live_command_of_the_lost_database(cli: Cli) -> None:
    cli.volume("v")
    lose(cli)
    lock = cli.state / "locks" / "11111111-1111-4111-8111-111111111111"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        cli.error(10, "locked", "doctor", "--rebuild", "--yes")
    cli("doctor", "--rebuild", "--yes")


DIE = """
import os, sys
from volctl.cli import main
from volctl.db import store
left = [int(sys.argv[1])]
def passed(point):
    left[0] -= 1
    left[0] or os._exit(9)
store.probe = passed
os._exit(main(["doctor", "--rebuild", "--yes"]))
"""


def test_a_rebuild_that_is_killed_is_made_by_the_next(cli: Cli, volctl: Volctl) -> None:
    made = cli.volume("v")
    lose(cli)
    for number in range(1, 20):
        done = subprocess.run(
            [sys.executable, "-c", DIE, str(number)], env=volctl.environment, check=False, timeout=LIMIT
        )
        if done.returncode == 0:
            break
        assert not (cli.state / "volctl.db").exists()
        cli.error(11, "db", "list")
    assert number >= 3
    assert [volume["id"] for volume in cli.json("list")] == [made["id"]]
    assert sorted(path.name for path in cli.state.glob(".*")) == []


def test_a_change_while_the_backend_is_away_is_carried_later(cli: Cli) -> None:
    cli.configure(CONFIG.format(kind="loop", home=cli.home))
    cli("backend", "init", "loop", "--yes")
    cli.volume("v")
    pool = cli.home / "loop"
    pool.rename(cli.home / "away")
    ran = cli("set", "v", "--name", "w", "--property", "k=1")
    assert "older for now" in ran.err
    (cli.home / "away").rename(pool)
    cli.volume("other")
    lose(cli)
    cli("doctor", "--rebuild", "--yes")
    assert {volume["name"]: volume["properties"] for volume in cli.json("list")} == {"w": {"k": "1"}, "other": {}}


def test_volumes_of_an_older_version_are_told(cli: Cli) -> None:
    """A database of before: nothing carries anything, and the next commands that write let it."""
    made = cli.volume("v")
    os.removexattr(cli.file("v"), "user.volctl")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        for table in ("volumes", "snapshots"):
            db.execute(f"DROP INDEX {table}_undescribed")
            db.execute(f"ALTER TABLE {table} DROP COLUMN undescribed")
        db.execute("DROP INDEX snapshots_type")
        db.execute("PRAGMA user_version = 4")
    cli.volume("w")
    assert made["id"] in os.getxattr(cli.file("v"), "user.volctl").decode()


POOLS = "".join(
    f'[[backend]]\nname = "{name}"\nkind = "{kind}"\ndirectory = "{{0}}/{name}"\n'
    for name, kind in (("files", "loop"), ("disks", "qcow2"))
)
STRANGE = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def pools(cli: Cli) -> tuple[Path, Path]:
    """The directories of `files`, a pool of loop files, and of `disks`, one of qcow2 files."""
    if not shutil.which("qemu-img"):
        pytest.skip("needs qemu-img (qemu-utils)")
    cli.configure(POOLS.format(cli.home))
    for name in ("files", "disks"):
        cli("backend", "init", name, "--yes")
    return cli.home / "files", cli.home / "disks"


def rebuilt(cli: Cli) -> dict[str, str]:
    """The database is lost and made again: what is told of each object, by its id."""
    lose(cli)
    told = {finding["id"]: finding["problem"] for finding in cli.json("doctor", "--rebuild", "--yes")}
    assert cli.json("doctor") == []
    return told


def delete_all(cli: Cli) -> None:
    for noun in ([], ["snapshot"]):
        for item in cli.json(*noun, "list"):
            cli(*noun, "delete", item["id"], *([] if noun else ["--cascade"]), "--yes")


def test_a_pool_that_was_copied_without_what_is_told(cli: Cli, pools: tuple[Path, Path]) -> None:
    """`cp -r` loses attributes and hard links: a snapshot does not say of which volume it is."""
    ids = set()
    for backend in ("files", "disks"):
        volume = cli.volume(f"v-{backend}", "--size", "1M", "--backend", backend)
        snapshot = cli.json("snapshot", "create", f"v-{backend}", f"s-{backend}")
        ids |= {volume["id"], snapshot["id"]}
    for pool in pools:
        copy = pool.with_name("copy")
        subprocess.run(["cp", "-r", pool, copy], check=True)
        for beside in copy.glob(".volctl-*"):
            beside.unlink()
        shutil.rmtree(pool)
        copy.rename(pool)
    told = rebuilt(cli)
    assert ids < set(told) and all("half made" in told[each] for each in ids)
    after = {volume["id"]: volume for volume in cli.json("list")}
    for snapshot in cli.json("snapshot", "list"):
        stand_in = after[snapshot["volume_id"]]
        assert (snapshot["status"], stand_in["status"]) == ("error", "error")
        assert snapshot["id"] in stand_in["fault"]["message"] and stand_in["id"] in told
    assert len(after) == 4 and len(cli.json("snapshot", "list")) == 2
    assert all(list(pool.glob("snap-*")) for pool in pools)
    delete_all(cli)
    assert [path.name for pool in pools for path in pool.iterdir()] == [".volctl"] * 2


def test_a_snapshot_that_names_no_volume_or_one_elsewhere(cli: Cli, pools: tuple[Path, Path]) -> None:
    cli.volume("here", "--size", "1M", "--backend", "files")
    other = cli.volume("there", "--size", "1M", "--backend", "disks")
    for name, volume_id in (("odd", "../../x"), ("elsewhere", other["id"])):
        taken = cli.json("snapshot", "create", "here", name)
        path = pools[0] / f"snap-{taken['id']}"
        carried = json.loads(os.getxattr(path, "user.volctl")) | {"volume_id": volume_id}
        os.setxattr(path, "user.volctl", json.dumps(carried).encode())
    rebuilt(cli)
    faults = {volume["id"]: volume["fault"] for volume in cli.json("list")}
    for snapshot in cli.json("snapshot", "list"):
        assert snapshot["status"] == "available" and snapshot["id"] in faults[snapshot["volume_id"]]["message"]
        cli("create", f"of-{snapshot['name']}", "--from-snapshot", snapshot["id"], "--backend", "files")
    assert cli.json("doctor") == []


@pytest.mark.parametrize("told", ["all", "the root", "none"])
def test_volumes_that_share_files_are_of_one_tree(told: str, cli: Cli, pools: tuple[Path, Path]) -> None:
    """Also those that do not say of which: whoever works on one of them holds the lock of all."""
    root = cli.volume("root", "--size", "1M", "--backend", "disks")
    cli("snapshot", "create", "root", "s")
    clones = [cli.volume(name, "--from-snapshot", "s")["id"] for name in "ab"]
    cli.volume("alone", "--size", "1M", "--backend", "disks")
    for beside in pools[1].glob(".volctl-*"):
        if told == "none" or (told == "the root" and not beside.name.endswith(root["id"])):
            beside.unlink()
    rebuilt(cli)
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db:
        trees = dict(db.execute("SELECT id, tree FROM volumes"))
    shared = [trees.pop(id_) or id_ for id_ in (root["id"], *clones)]
    assert len(set(shared)) == 1 and (told == "none" or shared[0] == root["id"])
    assert None in trees.values()


def test_a_damaged_file_keeps_no_other_back(cli: Cli, pools: tuple[Path, Path]) -> None:
    """Cut off, marked as corrupt, damaged, empty, and over a layer that is gone: each is a volume in `error`."""
    pool = pools[1]
    cli.volume("root", "--size", "1M", "--backend", "disks")
    taken = cli.json("snapshot", "create", "root", "s")
    made = {name: cli.volume(name, "--from-snapshot", "s") for name in ("good", "cut", "corrupt", "far", "vast")}
    made["empty"] = cli.volume("empty", "--size", "1M", "--backend", "files")
    base = cli.volume("base", "--size", "1M", "--backend", "disks")
    bare = cli.json("snapshot", "create", "base", "bare")
    made["over"] = cli.volume("over", "--from-snapshot", "bare")
    os.truncate(cli.file("cut"), 50)
    os.truncate(cli.file("empty"), 0)
    cli.fill("corrupt", b"\x02", 79)
    cli.fill("far", b"\xff" * 8, 8)
    cli.fill("vast", b"\xff" * 8, 24)
    for kind in ("layer", "snap", ".volctl-snap"):
        (pool / f"{kind}-{bare['id']}").unlink()
    told = rebuilt(cli)
    wrong = {
        "cut": "is not a qcow2 file",
        "corrupt": "marked as corrupt",
        "far": "has a damaged header",
        "vast": "has a damaged header",
        "empty": "holds no disk",
        "over": f"lies over layer-{bare['id']}, which is not there, or no layer",
    }
    for name, said in wrong.items():
        assert said in told[made[name]["id"]]
        shown = cli.json("show", name)
        assert shown["status"] == "error" and said in shown["fault"]["message"]
    assert "is not there" in told[base["id"]]
    assert told[taken["id"]] == told[made["good"]["id"]] == "made again"
    cli("delete", "cut", "corrupt", "far", "vast", "empty", "over", "base", "--cascade", "--yes")
    cli("snapshot", "delete", "s", "--yes")
    cli("create", "copy", "--from-volume", "good")
    assert cli.json("doctor") == []
    delete_all(cli)
    assert [path.name for path in pool.iterdir()] == [".volctl"]


def test_a_layer_that_lost_its_name_has_it_again(cli: Cli, pools: tuple[Path, Path]) -> None:
    made = cli.volume("v", "--size", "1M", "--backend", "disks")
    taken = cli.json("snapshot", "create", "v", "s")
    (pools[1] / f"layer-{taken['id']}").unlink()
    assert rebuilt(cli) == {made["id"]: "made again", taken["id"]: "made again"}
    cli("create", "w", "--from-snapshot", "s")
    delete_all(cli)


def test_what_a_damaged_volume_may_lie_over_stays(cli: Cli, pools: tuple[Path, Path]) -> None:
    """The layer of what cannot say that it needs it: it may be all that is left. It goes with the volume."""
    cli.volume("v", "--size", "1M", "--backend", "disks")
    taken = cli.json("snapshot", "create", "v", "s")
    cli("create", "w", "--from-snapshot", "s")
    cli("snapshot", "delete", "s", "--yes")
    layer = pools[1] / f"layer-{taken['id']}"
    for name in ("v", "w"):
        os.truncate(cli.file(name), 50)
    rebuilt(cli)
    assert layer.exists()
    cli("delete", "v", "w", "--yes")
    assert not layer.exists() and cli.json("doctor") == []


def test_what_only_bears_the_name_of_an_object_is_not_ours(cli: Cli, pools: tuple[Path, Path]) -> None:
    made = [cli.volume(name, "--size", "1M", "--backend", name) for name in ("files", "disks")]
    for pool in pools:
        (pool / f"volume-{STRANGE}").symlink_to("/etc/passwd")
        (pool / f"image-{STRANGE}").mkdir()
        os.mkfifo(pool / f"snap-{STRANGE}")
        (pool / "layer-old").mkdir()
    beside = pools[1] / f".volctl-volume-{made[1]['id']}"
    beside.unlink()
    os.mkfifo(beside)
    assert set(rebuilt(cli)) == {volume["id"] for volume in made}
    foreign = [finding["object"] for finding in cli.json("doctor", "--foreign")]
    assert sorted(foreign) == sorted(
        [f"{kind}-{STRANGE}" for kind in ("volume", "image", "snap")] * 2 + ["layer-old"] * 2
    )


def test_each_odd_field_is_dropped_alone(cli: Cli) -> None:
    cli("type", "create", "fast", "--spec", "ssd=true")
    made = cli.volume("v", "--size", "1M", "--property", "a=b")
    odd = {
        "type": "fast",
        "specs": [{"ssd": "true", "": "x", "provisioning:min_vol_size": "abc", "raid": "<is>True"}, {}, {}],
        "description": "\ud800",
        "created_at": "banana",
        "properties": {"a": "b", "c": "\ud800", "d": 1, "\x1b": "x"},
        "source_kind": [],
        "source_id": "../x",
        "source_name": "\udcff",
        "tree": "../../x",
        "protected": "yes",
    }
    carried = json.loads(os.getxattr(cli.file("v"), "user.volctl")) | odd
    os.setxattr(cli.file("v"), "user.volctl", zlib.compress(json.dumps(carried).encode()))
    rebuilt(cli)
    after = cli.json("show", "v")
    assert after["source"] == {"kind": "blank", "id": None, "name": None}
    for field, value in {"type": "fast", "description": None, "properties": {"a": "b"}, "protected": False}.items():
        assert after[field] == value
    assert made["created_at"] < after["created_at"] < "3"
    (kind,) = cli.json("type", "list")
    assert (kind["specs"], kind["description"], kind["created_at"] > "2") == ({"ssd": "true"}, None, True)
    cli("type", "unset", "fast", "--spec", "ssd")
    cli("create", "w", "--from-volume", "v")
    cli("delete", "v", "w", "--yes")


@pytest.mark.parametrize("odd", ["banana", "2026-13-01T00:00:00.000000Z", "2026-01-01", "9" * 40])
def test_a_time_is_one(odd: str, cli: Cli) -> None:
    made = cli.volume("v")
    carried = json.loads(os.getxattr(cli.file("v"), "user.volctl")) | {"created_at": odd}
    os.setxattr(cli.file("v"), "user.volctl", json.dumps(carried).encode())
    rebuilt(cli)
    after = cli.json("show", "v")["created_at"]
    assert after != odd and made["created_at"] < after < "3"


def test_bounds_that_no_size_fits_are_dropped(cli: Cli) -> None:
    cli("type", "create", "fast")
    cli.volume("v", "--size", "1M", "--type", "fast")
    bounds = {"provisioning:min_vol_size": "5", "provisioning:max_vol_size": "2"}
    carried = json.loads(os.getxattr(cli.file("v"), "user.volctl")) | {"specs": [bounds, None, None]}
    os.setxattr(cli.file("v"), "user.volctl", zlib.compress(json.dumps(carried).encode()))
    rebuilt(cli)
    assert cli.json("type", "show", "fast")["specs"] == {}
    cli("extend", "v", "2M")

"""Chains of qcow2 files that differ from their rows, or lack a file: nothing is lost, and `doctor` tells."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests import qcow2_files
from tests.backends.conformance import stranger
from tests.backends.test_attach_qcow2 import daemon_of, end_daemon, kill_daemon, take_away
from tests.cli.conftest import Cli, MiB, make_image, qemu_img
from tests.cli.test_backup import restore
from tests.conftest import Volctl

DISKS = '[[backend]]\nname = "disks"\nkind = "qcow2"\ndirectory = "{home}/disks"\n'


@pytest.fixture
def disks(cli: Cli) -> Cli:
    """With a volume `q` that holds `precious`."""
    cli.configure(DISKS.format(home=cli.home))
    cli("backend", "init", "disks", "--yes")
    cli.volume("q", "--size", "4M")
    write(cli, "q", b"precious")
    return cli


def write(cli: Cli, name: str, data: bytes) -> None:
    qcow2_files.write(cli.file(name), 0, data)


def reads(cli: Cli, name: str) -> bytes:
    return qcow2_files.read(cli.file(name)).rstrip(b"\0")


def back(cli: Cli, *commands: str) -> None:
    """The database is put back as it was before these commands."""
    cli("backup-db", "copy.db", "--force")
    for words in commands:
        cli(*words.split())
    restore(cli, cli.home / "copy.db")


def mark_corrupt(file: Path, on: bool) -> None:
    with file.open("r+b") as header:
        header.seek(79)
        header.write(b"\2" if on else b"\0")


def layers(cli: Cli) -> list[Path]:
    return sorted((cli.home / "disks").glob("layer-*"))


SINCE = {
    "a snapshot": ["snapshot create q s"],
    "a clone": ["create c --from-volume q"],
    "both": ["snapshot create q s", "create c --from-volume q", "create d --from-snapshot s"],
    "a snapshot and a new one": ["snapshot create q s", "snapshot create q t"],
}


@pytest.mark.parametrize("since", SINCE)
@pytest.mark.parametrize("before", ["", "snapshot create q old", "create other --from-volume q"])
def test_what_an_older_database_does_not_know_is_deleted_without_what_others_need(
    disks: Cli, before: str, since: str
) -> None:
    if before:
        disks(*before.split())
        write(disks, "q", b"precious")
    back(disks, *SINCE[since])
    disks("doctor", "--fix", "--yes")
    assert reads(disks, "q") == b"precious"
    disks("create", "new", "--size", "1M")
    assert reads(disks, "q") == b"precious"


def test_a_snapshot_is_deleted_and_merged_into_nothing_that_an_unknown_clone_lies_over(disks: Cli) -> None:
    disks("snapshot", "create", "q", "s")
    write(disks, "q", b"changed")
    disks("backup-db", "copy.db")
    disks("create", "c", "--from-snapshot", "s")
    clone = disks.file("c")
    restore(disks, disks.home / "copy.db")
    disks("snapshot", "delete", "s", "--yes")
    disks("delete", "q", "--yes")
    assert qcow2_files.read(clone).startswith(b"precious")


def test_a_file_that_is_marked_as_corrupt_keeps_what_it_needs(disks: Cli) -> None:
    back(disks, "snapshot create q s")
    file = disks.file("q")
    mark_corrupt(file, True)
    disks("doctor", "--fix", "--yes")
    mark_corrupt(file, False)
    assert qcow2_files.read(file).startswith(b"precious")


def test_an_image_is_kept_for_a_volume_that_no_row_knows(disks: Cli) -> None:
    make_image(disks.home / "disk.raw", b"image", MiB, "raw")
    disks("create", "v", "--from-image", "disk.raw")
    disks("backup-db", "copy.db")
    disks("create", "w", "--from-image", "disk.raw")
    unknown = disks.file("w")
    restore(disks, disks.home / "copy.db")
    disks("delete", "v", "--yes")
    (disks.home / "disk.raw").unlink()
    disks("image", "cache", "prune", "--yes")
    assert qcow2_files.read(unknown).startswith(b"image")


def test_a_snapshot_whose_layer_lost_its_name_gives_it_back(disks: Cli) -> None:
    disks("snapshot", "create", "q", "s")
    (layer,) = layers(disks)
    layer.unlink()
    disks("snapshot", "delete", "s", "--yes")
    assert reads(disks, "q") == b"precious"


def doctor(cli: Cli, *words: str, status: int = 12) -> set[tuple[str, str]]:
    """Kinds, and the kinds of the files that they are about."""
    found = cli.json("doctor", *words, status=status)
    assert all(finding["problem"] and finding["fix"] for finding in found)
    return {(finding["kind"], finding["object"].split("-")[0]) for finding in found}


def put_right(cli: Cli) -> None:
    cli("doctor", "--fix", "--yes")
    assert cli.json("doctor") == []


@pytest.mark.parametrize("since", SINCE)
def test_rows_of_another_time_are_put_right_without_a_byte(disks: Cli, since: str) -> None:
    back(disks, *SINCE[since])
    files = {path.name: path.read_bytes() for path in (disks.home / "disks").iterdir()}
    told = doctor(disks)
    assert {kind for kind, _ in told} == {"chain", "orphan"} and ("chain", "volume") in told
    assert {kind for kind, _ in doctor(disks, "--fix")} == {"chain", "orphan"}
    assert {path.name: path.read_bytes() for path in (disks.home / "disks").iterdir()} == files
    assert {kind for kind, _ in doctor(disks)} == {"orphan"}
    disks("image", "save", "q", "saved.raw", "--format", "raw")
    assert (disks.home / "saved.raw").read_bytes().startswith(b"precious")
    put_right(disks)
    disks("extend", "q", "5M")
    disks("snapshot", "create", "q", "s")
    disks("delete", "q", "--cascade", "--yes")
    assert sorted(path.name for path in (disks.home / "disks").iterdir()) == [".volctl"]


def test_what_was_merged_since_can_be_opened_again(disks: Cli) -> None:
    disks("snapshot", "create", "q", "s")
    back(disks, "snapshot delete s --yes")
    assert doctor(disks) == {("chain", "volume"), ("snapshot_object", "snap")}
    put_right(disks)
    disks("create", "c", "--from-volume", "q")
    assert [reads(disks, name) for name in "qc"] == [b"precious"] * 2
    disks("delete", "q", "c", "--cascade", "--yes")
    assert disks.json("doctor") == []


def test_volumes_over_a_file_that_is_gone_are_in_error(disks: Cli) -> None:
    disks("create", "c", "--from-volume", "q")
    disks("snapshot", "create", "c", "s")
    disks("create", "other", "--size", "1M")
    (hidden,) = [path for path in layers(disks) if path.stat().st_nlink == 1]
    kept = hidden.read_bytes()
    hidden.unlink()
    assert doctor(disks) == {("chain", "volume"), ("chain", "snap")}
    put_right(disks)
    states = {volume["name"]: (volume["status"], volume["fault"]) for volume in disks.json("list")}
    assert states.pop("other") == ("available", None)
    assert all(status == "error" and hidden.name in fault["message"] for status, fault in states.values())
    assert disks.json("snapshot", "show", "s")["status"] == "error"
    hidden.write_bytes(kept)
    assert doctor(disks) == {("status", "volume"), ("status", "snap")}
    put_right(disks)
    assert [reads(disks, name) for name in "qc"] == [b"precious"] * 2
    hidden.unlink()
    put_right(disks)
    disks("delete", "q", "--yes")
    disks("delete", "c", "--cascade", "--yes")
    assert layers(disks) == [] and disks.json("doctor") == []


def test_volumes_over_a_damaged_file_are_in_error_until_it_is_mended(disks: Cli) -> None:
    disks("create", "c", "--from-volume", "q")
    disks("create", "other", "--size", "1M")
    (hidden,) = layers(disks)
    mark_corrupt(hidden, True)
    assert doctor(disks) == {("chain", "volume")}
    put_right(disks)
    states = {volume["name"]: (volume["status"], volume["fault"]) for volume in disks.json("list")}
    assert states.pop("other") == ("available", None)
    assert all(
        status == "error" and f"{hidden.name}, which is damaged" in fault["message"]
        for status, fault in states.values()
    )
    mark_corrupt(hidden, False)
    assert doctor(disks) == {("status", "volume")}
    put_right(disks)
    disks("create", "d", "--from-volume", "c")
    assert [reads(disks, name) for name in "qcd"] == [b"precious"] * 3


def test_a_file_that_was_swapped_for_one_over_anything_is_never_noted(disks: Cli) -> None:
    disks("create", "other", "--size", "4M")
    (disks.home / "disks" / "secret").write_bytes(disks.file("other").read_bytes())
    for number, below in enumerate(("secret", "other", str(disks.home / "config.toml"))):
        disks.volume(f"v{number}", "--size", "4M")
        name = disks.file("other").name if below == "other" else below
        qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, disks.file(f"v{number}"))
    put_right(disks)
    assert {volume["name"] for volume in disks.json("list", "--status", "error")} == {"v0", "v1", "v2"}


def test_a_layer_that_lost_its_name_has_it_again(disks: Cli) -> None:
    disks("snapshot", "create", "q", "s")
    disks("create", "c", "--from-snapshot", "s")
    (layer,) = layers(disks)
    layer.unlink()
    assert ("chain", "layer") in doctor(disks)
    disks("doctor", "--fix")
    assert disks.json("doctor") == []
    assert [reads(disks, name) for name in "qc"] == [b"precious"] * 2


def test_volumes_that_no_row_knows_go_before_the_image_that_they_lie_over(disks: Cli) -> None:
    make_image(disks.home / "disk.raw", b"image", MiB, "raw")
    back(disks, *(f"create n{number} --from-image disk.raw" for number in range(3)), "snapshot create n1 s")
    put_right(disks)
    assert not list((disks.home / "disks").glob("image-*"))


@pytest.mark.parametrize(
    ("damage", "key"), [("DELETE FROM cached_images", "lost:"), ("UPDATE cached_images SET status = 'error'", "file:")]
)
def test_an_image_without_a_good_row_is_noted_again_for_what_lies_over_it(damage: str, key: str, disks: Cli) -> None:
    """Over v by a snapshot's layer only, and not for w, which no row knows."""
    make_image(disks.home / "disk.raw", b"image", MiB, "raw")
    disks("create", "v", "--from-image", "disk.raw")
    disks("snapshot", "create", "v", "s")
    disks("backup-db", "copy.db")
    disks("create", "w", "--from-image", "disk.raw")
    restore(disks, disks.home / "copy.db")
    database = disks.state / "volctl.db"
    sql(database, damage)
    assert ("cached_image", "image") in doctor(disks)
    put_right(disks)
    ((status, found),) = sql(database, "SELECT status, key FROM cached_images")
    assert status == "available" and found.startswith(key)
    assert reads(disks, "v") == b"image"
    disks("delete", "v", "--cascade", "--yes")
    sql(database, damage)
    assert doctor(disks) == {("orphan" if key == "lost:" else "cached_image", "image")}
    put_right(disks)
    assert not list((disks.home / "disks").glob("image-*"))


def sql(database: Path, text: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(database)) as db, db:
        return db.execute(text).fetchall()


def test_a_tree_that_is_worked_on_is_left_alone(disks: Cli) -> None:
    """An object that no row knows shares files with a volume that one does."""
    back(disks, "create c --from-volume q")
    lock = disks.state / "locks" / disks.json("show", "q")["id"]
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert disks.json("doctor", "--fix", "--yes") == []
    assert {kind for kind, _ in doctor(disks)} == {"chain", "orphan"}


@pytest.mark.root
@pytest.mark.parametrize("ended", [False, True])
def test_the_last_bytes_of_a_file_are_in_its_device(disks: Cli, ended: bool) -> None:
    """Also if its daemon has ended: then nothing of them, but the device is to go. Another pool has no part in it."""
    disks.configure(DISKS.format(home=disks.home) + DISKS.format(home=disks.home).replace("disks", "more"))
    disks("backend", "init", "more", "--yes")
    device = disks("attach", "q", "-o", "value").out.strip()
    daemon = daemon_of(device)
    try:
        disks.file("q").unlink()
        if ended:
            kill_daemon(daemon)
            time.sleep(1.5)  # as long the kernel remembers what the daemon told it of the file
        ran = disks("doctor", "--fix", "--json", status=12)
        assert [(found["kind"], found["backend"], found["fixed"]) for found in ran.json()] == [
            ("volume_object", "disks", True),
            ("device", "disks", False),
        ]
        assert ended or Path(device).read_bytes().startswith(b"precious")
        assert doctor(disks) == {("device", "volume")}
        put_right(disks)
        assert daemon.ids() == [] and not daemon.disk.exists()
        assert not list(Path("/sys/block", os.path.basename(device)).glob("loop/backing_file"))
    finally:
        if daemon.ids():
            take_away(device)
        end_daemon(daemon)


@pytest.mark.root
def test_a_file_put_in_the_place_of_an_attached_one_is_told(disks: Cli) -> None:
    """What the device shows is another one's: the volume is no longer attached, and the device is to go."""
    device = disks("attach", "q", "-o", "value").out.strip()
    daemon = daemon_of(device)
    try:
        shutil.copyfile(disks.file("q"), "new")
        Path("new").replace(disks.file("q"))
        assert doctor(disks) == {("attachment", "volume"), ("device", "volume")}
        assert disks.json("show", "q")["status"] == "available"
        for words in ("extend q 8M", "delete q --yes", "attach q"):
            assert f"{device}, which shows another file" in disks.error(5, "in_use", *words.split())["message"]
        assert Path(device).read_bytes().startswith(b"precious")
        put_right(disks)
        assert daemon.ids() == [] and reads(disks, "q") == b"precious"
        disks("attach", "q")
        disks("detach", "q")
    finally:
        if daemon.ids():
            take_away(device)
        end_daemon(daemon)


@pytest.mark.root
def test_a_copy_of_the_state_directory_is_not_attached(disks: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    device, copied = disks("attach", "q", "-o", "value").out.strip(), disks.home / "copied"
    try:
        for name in ("state", "disks"):
            shutil.copytree(disks.home / name, copied / name)
        (copied / "config.toml").write_text(DISKS.format(home=copied))
        with monkeypatch.context() as there:
            there.setenv("VOLCTL_STATE_DIR", str(copied / "state"))
            there.setenv("VOLCTL_CONFIG", str(copied / "config.toml"))
            assert disks.json("show", "q")["attachments"][0]["device"] is None
            assert disks.json("detach", "q")["status"] == "available"
            disks("snapshot", "create", "q", "s")
            disks("delete", "q", "--cascade", "--yes")
            assert disks.json("doctor") == []
        assert disks.json("show", "q")["attachments"][0]["device"] == device
        with open(device, "r+b", buffering=0) as disk:
            disk.write(b"written!")
            os.fsync(disk)
    finally:
        disks("detach", "q")
    assert reads(disks, "q") == b"written!"


@pytest.mark.root
def test_a_daemon_that_lost_its_device_is_told_and_ended(disks: Cli) -> None:
    device = disks("attach", "q", "-o", "value").out.strip()
    daemon = daemon_of(device)
    take_away(device)
    assert doctor(disks) == {("attachment", "volume"), ("device", "volume")}
    assert disks.json("show", "q")["status"] == "available"
    assert doctor(disks) == {("device", "volume")}
    put_right(disks)
    assert daemon.ids() == [] and not daemon.disk.exists()


@pytest.mark.root
def test_a_daemon_that_lost_its_device_does_not_keep_the_file_to_itself(disks: Cli) -> None:
    take_away(disks("attach", "q", "-o", "value").out.strip())
    disks("image", "save", "q", "saved.img")
    assert Path("saved.img").read_bytes().startswith(b"precious")
    assert disks.json("doctor") == []


def alone(cli: Cli) -> Path:
    """The layer of volumes whose files are gone, and their rows with the database."""
    cli("create", "other", "--size", "1M")
    cli("create", "c", "--from-volume", "q")
    for name in "qc":
        cli.file(name).unlink()
    for path in cli.state.glob("volctl.db*"):
        path.unlink()
    cli("doctor", "--rebuild", "--yes")
    (layer,) = layers(cli)
    return layer


def test_a_layer_that_nothing_lies_over_is_removed_when_it_was_agreed_to(disks: Cli) -> None:
    layer = alone(disks)
    assert doctor(disks) == doctor(disks, "--fix") == {("leftover", "layer")}
    assert disks.json("doctor", status=12)[0]["deletes"] and layer.exists()
    put_right(disks)
    assert not layer.exists() and disks.json("backend", "show", "disks")["details"]["hidden_layers"] == 0


def test_the_layers_of_a_volume_whose_file_is_gone_stay_with_its_row(disks: Cli) -> None:
    disks("create", "c", "--from-volume", "q")
    for name in "qc":
        disks.file(name).unlink()
    put_right(disks)
    assert len(layers(disks)) == 1
    disks("delete", "q", "c", "--yes")
    assert layers(disks) == [] and disks.json("doctor") == []


def test_a_layer_that_somebody_reads_is_left(disks: Cli, volctl: Volctl) -> None:
    layer = alone(disks)
    with layer.open("rb") as file:
        holder = subprocess.Popen(["sleep", "600"], stdin=file)
    try:
        ran = volctl("doctor", "--fix", "--yes", "--json", status=12)
        assert "is in use by" in ran.json()[0]["problem"] and layer.exists()
    finally:
        holder.kill()
        holder.wait()
    put_right(disks)


def only_q_over_it(cli: Cli) -> Path:
    """The layer that another volume was over, too; somebody read it when that was deleted."""
    cli("create", "c", "--from-volume", "q")
    (layer,) = layers(cli)
    with reading(layer):
        cli("delete", "c", "--yes")
        assert cli.json("doctor") == []
    return layer


@contextmanager
def reading(path: Path) -> Iterator[None]:
    with stranger("import sys; f = open(sys.argv[1])", str(path)):
        yield


def test_a_layer_that_could_not_be_merged_is_merged_later(disks: Cli) -> None:
    layer = only_q_over_it(disks)
    assert doctor(disks) == {("chain", "layer")} and layer.exists()
    with (disks.state / "locks" / disks.json("show", "q")["id"]).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert disks.json("doctor", "--fix", "--yes") == []
    disks("doctor", "--fix")  # no byte goes
    assert disks.json("doctor") == [] and layers(disks) == [] and reads(disks, "q") == b"precious"


def test_a_layer_is_not_merged_while_another_volume_may_come_back_to_it(disks: Cli) -> None:
    disks("create", "c", "--from-volume", "q")
    file = disks.file("c")
    file.rename(disks.home / "kept")
    disks("doctor", "--fix", "--yes")
    (disks.home / "kept").rename(file)
    put_right(disks)
    assert [reads(disks, name) for name in "qc"] == [b"precious"] * 2


def test_a_layer_is_not_merged_while_its_snapshot_has_a_row(disks: Cli) -> None:
    disks("snapshot", "create", "q", "s")
    (snapshot,) = (disks.home / "disks").glob("snap-*")
    snapshot.unlink()
    put_right(disks)
    assert len(layers(disks)) == 1
    disks("snapshot", "delete", "s", "--yes")
    assert layers(disks) == [] and reads(disks, "q") == b"precious"


@pytest.mark.root
def test_a_layer_under_an_attached_volume_waits_for_its_end(disks: Cli) -> None:
    disks("snapshot", "create", "q", "s")
    disks("attach", "q")
    disks("snapshot", "delete", "s", "--yes")
    assert len(layers(disks)) == 1 and disks.json("doctor") == []
    disks("detach", "q")
    assert layers(disks) == [] and reads(disks, "q") == b"precious"


def test_a_layer_that_only_a_row_still_names_is_removed(disks: Cli) -> None:
    """As a merge that was cut off left it before its volume was worked on again."""
    layer, file = only_q_over_it(disks), disks.file("q")
    qemu_img("rebase", "-f", "qcow2", "-b", "", file)
    with closing(sqlite3.connect(disks.state / "volctl.db")) as db, db:
        db.execute("INSERT INTO layers (backend, name, parent) VALUES ('disks', ?, '')", (file.name,))
    assert doctor(disks) == {("leftover", "layer")}
    put_right(disks)
    assert not layer.exists() and reads(disks, "q") == b"precious"


DAMAGED = {  # who is, what was written to the volume since (it is merged the shorter way), and what doctor says
    "the volume": ("volume", MiB, "has 0 bytes"),
    "the layer, read": ("layer", MiB, "only volume-"),
    "the layer, written to": ("layer", 1, "which is damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_volume_is_deleted_beside_one_that_is_damaged(disks: Cli, case: str) -> None:
    who, written, problem = DAMAGED[case]
    disks("create", "c", "--from-volume", "q")
    qcow2_files.write(disks.file("q"), MiB, b"x" * written)
    (layer,) = layers(disks)
    with (disks.file("q") if who == "volume" else layer).open("r+b") as file:
        file.seek(40)
        file.seek(int.from_bytes(file.read(8), "big"))
        file.write((1 << 63 | 0x12345600).to_bytes(8, "big"))  # where no table of the second level can be
    disks("delete", "c", "--yes")
    assert layer.exists() and [volume["name"] for volume in disks.json("list")] == ["q"]
    (found,) = disks.json("doctor", status=12)
    assert problem in found["problem"]
    (found,) = disks("doctor", "--fix", "--json", status=12 if found["fix"] == "merge them" else 0).json()
    assert found["fixed"] or "one is damaged" in found["problem"]
    assert layer.exists() and all(flow["ended_at"] for flow in disks.json("flow", "list"))


def test_a_file_that_is_only_named_like_a_layer_is_foreign(disks: Cli) -> None:
    mine = disks.home / "disks" / "layer-mine"
    shutil.copy(disks.file("q"), mine)
    found = disks.json("doctor", "--foreign", "--fix", "--yes")
    assert [(finding["kind"], finding["object"]) for finding in found] == [("foreign", "layer-mine")]
    assert mine.exists()

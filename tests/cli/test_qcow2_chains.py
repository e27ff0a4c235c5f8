"""Chains of qcow2 files that differ from their rows, or lack a file: nothing is lost, and `doctor` tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import qcow2_files
from tests.cli.conftest import Cli, MiB, make_image
from tests.cli.test_backup import restore

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
    with file.open("r+b") as header:
        header.seek(79)
        header.write(b"\2")
    disks("doctor", "--fix", "--yes")
    with file.open("r+b") as header:
        header.seek(79)
        header.write(b"\0")
    assert qcow2_files.read(file).startswith(b"precious")


def test_an_image_is_kept_for_a_volume_that_no_row_knows(disks: Cli) -> None:
    make_image(disks.home / "disk.raw", b"image", MiB, "raw")
    disks("create", "v", "--from-image", "disk.raw")
    disks("backup-db", "copy.db")
    disks("create", "w", "--from-image", "disk.raw")
    unknown = disks.file("w")
    restore(disks, disks.home / "copy.db")
    disks("delete", "v", "--yes")
    disks("image", "cache", "prune", "--yes")
    assert qcow2_files.read(unknown).startswith(b"image")


def test_a_snapshot_whose_layer_lost_its_name_gives_it_back(disks: Cli) -> None:
    disks("snapshot", "create", "q", "s")
    (layer,) = layers(disks)
    layer.unlink()
    disks("snapshot", "delete", "s", "--yes")
    assert reads(disks, "q") == b"precious"

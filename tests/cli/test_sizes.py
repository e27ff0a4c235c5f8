"""An object that somebody cut or grew: its size differs from its row's, and no command hides or spreads that."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests import qcow2_files
from tests.cli.conftest import Cli, MiB


@pytest.fixture(params=["loop", "qcow2"])
def pool(request: pytest.FixtureRequest, cli: Cli) -> str:
    """A volume `v` of 10 MiB with a snapshot `s`."""
    kind: str = request.param
    cli.configure(f'[[backend]]\nname = "b"\nkind = "{kind}"\ndirectory = "{cli.home}/b"\n')
    cli("backend", "init", "b", "--yes")
    cli.volume("v", "--size", "10M")
    cli("snapshot", "create", "v", "s")
    return kind


def resize(kind: str, file: Path, size: int) -> None:
    if kind == "loop":
        os.truncate(file, size)
        return
    with file.open("r+b") as disk:
        disk.seek(24)
        disk.write(size.to_bytes(8))


@pytest.mark.parametrize("size", [0, MiB, 30 * MiB])
def test_a_snapshot_of_another_size_is_not_read(size: int, pool: str, cli: Cli) -> None:
    snapshot = cli.home / "b" / f"snap-{cli.json('snapshot', 'show', 's')['id']}"
    resize(pool, snapshot, size)
    for words in (["revert", "v", "s", "--yes"], ["create", "c", "--from-snapshot", "s"], ["image", "save", "s", "f"]):
        error = cli.refused(8, "backend", *words)
        assert error["message"] == f"{snapshot.name} has {size} bytes, its row says {10 * MiB}"
        assert "doctor" in error["hint"]


@pytest.mark.parametrize("size", [0, MiB, 30 * MiB])
def test_a_volume_of_another_size_is_not_read(size: int, pool: str, cli: Cli) -> None:
    resize(pool, cli.file("v"), size)
    for words in (["snapshot", "create", "v", "t"], ["create", "c", "--from-volume", "v"], ["image", "save", "v", "f"]):
        message = cli.refused(8, "backend", *words)["message"]
        assert message == f"{cli.file('v').name} has {size} bytes, its row says {10 * MiB}"


def test_a_volume_that_was_cut_is_not_extended(pool: str, cli: Cli) -> None:
    resize(pool, cli.file("v"), MiB)
    cli.refused(8, "backend", "extend", "v", "20M")
    (found,) = cli.json("doctor", status=12)
    assert found["kind"] == "volume_object"


def test_a_volume_that_somebody_grew_is_extended_to_what_it_has_or_more(pool: str, cli: Cli) -> None:
    resize(pool, cli.file("v"), 30 * MiB)
    assert "doctor" in cli.refused(5, "conflict", "extend", "v", "20M")["hint"]
    cli("doctor", "--fix", "--yes")
    assert cli.json("show", "v")["size"] == 30 * MiB
    assert cli.json("extend", "v", "40M")["size"] == 40 * MiB


def test_a_size_that_no_disk_has_is_a_damaged_header(cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "b"\nkind = "qcow2"\ndirectory = "{cli.home}/b"\n')
    cli("backend", "init", "b", "--yes")
    cli.volume("v")
    file = cli.file("v")
    for size in (2**63, 2**64 - 1):
        resize("qcow2", file, size)
        cli.refused(8, "backend", "extend", "v", "2M")
        (found,) = cli.json("doctor", status=12)
        assert found["fix"] == "set it to error"
    cli("doctor", "--fix", "--yes")
    resize("qcow2", file, MiB)
    cli("doctor", "--fix", "--yes")
    assert cli.json("show", "v")["status"] == "available"


@pytest.fixture
def cut(cli: Cli) -> Cli:
    """Volumes `v` and `w` with a snapshot `s` between: `v`, and what is below `w`, end before what they hold."""
    cli.configure(f'[[backend]]\nname = "b"\nkind = "qcow2"\ndirectory = "{cli.home}/b"\n')
    cli("backend", "init", "b", "--yes")
    for name in "vw":
        cli.volume(name, "--size", "10M")
        qcow2_files.write(cli.file(name), 0, b"\7" * 4 * MiB)
    cli("snapshot", "create", "w", "s")
    for file in (cli.file("v"), *(cli.home / "b").glob("layer-*")):
        os.truncate(file, 2 * MiB)
    return cli


@pytest.mark.parametrize("name", "vw")
@pytest.mark.parametrize(
    "words",
    [
        "image save {} f",
        "snapshot create {} t",
        "extend {} 20M",
        "create c --from-volume {}",
    ],
)
def test_a_file_that_was_cut_within_its_data_is_not_read(words: str, name: str, cut: Cli) -> None:
    message = cut.error(8, "backend", *words.format(name).split())["message"]
    assert "is cut off: it ends before what it holds" in message or "has 0 bytes, its row says" in message


@pytest.mark.root
def test_a_file_that_lacks_what_its_guest_had_not_flushed_is_attached(cut: Cli) -> None:
    """The power went: its guest is the one to say what that is worth. What lies below had been flushed."""
    cut("attach", "v")
    assert "is cut off" in cut.error(8, "backend", "attach", "w")["message"]
    assert sorted(each["name"] for each in cut.json("doctor", status=12)) == ["s", "s", "w"]
    hint = cut.error(8, "backend", "snapshot", "create", "v", "t")["hint"]
    cut("detach", "v")
    size = re.search(r"truncate -s (\d+) FILE", cut.error(8, "backend", "image", "save", "v", "f")["hint"] + hint)
    assert size
    os.truncate(cut.file("v"), int(size[1]))
    cut("image", "save", "v", "f")
    assert sorted(each["name"] for each in cut.json("doctor", status=12)) == ["s", "s", "w"]


def test_a_file_that_was_cut_within_its_data_is_told(cut: Cli) -> None:
    found = cut.json("doctor", status=12)
    assert {(each["kind"], each["name"]) for each in found} == {
        ("volume_object", "v"), ("chain", "w"), ("chain", "s"), ("snapshot_object", "s")
    }  # fmt: skip
    cut("doctor", "--fix", "--yes")
    assert {volume["status"] for volume in cut.json("list")} == {"error"}
    for words in ("revert w s --yes", "create c --from-snapshot s", "image save s f"):
        cut.error(5, "conflict", *words.split())
    cut("delete", "v", "w", "--cascade", "--yes")
    assert cut.json("doctor") == []

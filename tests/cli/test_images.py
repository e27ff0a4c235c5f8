"""Registered images: in place, copied, a volume; what happens when the file changes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, GiB, MiB, make_image, zeros

CONTENT = bytes(range(256)) * 4096
FIELDS = [
    "id", "name", "location", "format", "size", "virtual_size", "sha256", "min_disk", "properties", "status",
    "created_at", "origin",
]  # fmt: skip


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"])
def test_every_format_becomes_the_same_volume(format: str, cli: Cli) -> None:
    image = make_image(cli.home / "disk", CONTENT, 8 * MiB, format)
    known = cli.json("image", "add", "i", image)
    assert known["format"] == {"vpc": "vhd"}.get(format, format)
    made = cli.volume("v", "--from-image", "i", "--size", "1")
    assert (made["bootable"], made["size"]) == (True, GiB)
    file = cli.file("v")
    with file.open("rb") as content:
        assert content.read(MiB) == CONTENT
    assert file.stat().st_size == GiB
    assert zeros(file, MiB)
    assert file.stat().st_blocks * 512 <= 2 * MiB


def test_in_place(cli: Cli) -> None:
    image = make_image(cli.home / "disk.qcow2", CONTENT, 4 * MiB)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    added = cli.json(
        "image", "add", "i", "disk.qcow2", "--min-disk", "8M", "--property", "os=x", "--checksum", f"sha256:{digest}"
    )
    assert list(added) == FIELDS
    assert added | {"id": "", "created_at": ""} == {
        "id": "", "name": "i", "location": str(image), "format": "qcow2", "size": image.stat().st_size,
        "virtual_size": 4 * MiB, "sha256": digest, "min_disk": 8 * MiB, "properties": {"os": "x"},
        "status": "available", "created_at": "", "origin": None,
    }  # fmt: skip
    assert cli.json("image", "list") == [added]
    assert cli.json("image", "show", "i") == added
    assert cli.json("events", added["id"])[0]["type"] == "image.add"
    cli("image", "delete", "i")
    assert image.exists()
    assert cli.json("image", "list") == []
    cli.refused(4, "not_found", "image", "delete", "i")


def test_a_copy_of_our_own(cli: Cli) -> None:
    image = make_image(cli.home / "disk.qcow2", CONTENT, 4 * MiB)
    content = image.read_bytes()
    added = cli.json("image", "add", "i", image, "--copy")
    copy = cli.state / "images" / added["id"]
    assert added["location"] == str(copy)
    assert copy.read_bytes() == content
    assert copy.stat().st_mode & 0o777 == 0o600
    image.unlink()
    assert cli.volume("v", "--from-image", "i")["size"] == 4 * MiB
    cli("image", "delete", "i")
    assert not copy.exists()
    assert cli.file("v").read_bytes()[:MiB] == CONTENT


@pytest.mark.parametrize("pack", ["gzip", "xz", "zstd"])
def test_packed(pack: str, cli: Cli) -> None:
    """Unpacked for one volume, or kept unpacked as our own copy; nothing else is left of it."""
    image = make_image(cli.home / "disk.qcow2", CONTENT, 4 * MiB)
    size = image.stat().st_size
    subprocess.run([pack, "-q", image], check=True)
    (packed,) = cli.home.glob("disk.qcow2.*")
    image.unlink(missing_ok=True)
    found = cli.json("image", "check", packed)
    assert (found["packed"], found["format"], found["size"]) == (pack, "qcow2", size)
    made = cli.json("create", "v", "--from-image", packed)
    assert (made["size"], made["source"]["name"]) == (4 * MiB, str(packed))
    assert cli.file("v").read_bytes() == CONTENT + bytes(3 * MiB)
    assert os.listdir(cli.state / "images") == []
    cli.refused(7, "image_too_big", "create", "w", "--from-image", packed, "--size", "1M")
    ran = cli("image", "add", "i", packed, "--json")
    assert "kept as our own copy" in ran.err
    assert ran.json()["location"] == str(cli.state / "images" / ran.json()["id"])
    assert (ran.json()["format"], ran.json()["size"]) == ("qcow2", size)
    packed.unlink()
    cli.json("create", "x", "--from-image", "i")
    assert cli.file("x").read_bytes() == CONTENT + bytes(3 * MiB)
    cli("image", "delete", "i")
    assert os.listdir(cli.state / "images") == []


@pytest.mark.parametrize("how", ["mv", "cp -a"])
def test_copies_go_with_the_state_directory(how: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    added = cli.json("image", "add", "i", make_image(cli.home / "disk.qcow2", CONTENT, 2 * MiB), "--copy")
    in_place = cli.json("image", "add", "j", "disk.qcow2")
    moved = cli.home / "moved"
    subprocess.run([*how.split(), cli.state, moved], check=True)
    monkeypatch.setenv("VOLCTL_STATE_DIR", str(moved))
    here = added | {"location": str(moved / "images" / added["id"])}
    assert cli.json("image", "list") == [here, in_place]
    cli("doctor")
    for name in ("i", added["id"]):
        cli("create", name[0], "--from-image", name)
        assert cli.file(name[0]).read_bytes().startswith(CONTENT)
    refreshed = cli.json("image", "refresh", "i")
    assert refreshed == here
    copy = Path(here["location"])
    copy.touch()
    assert cli.error(7, "image_unsafe", "create", "--from-image", "i")["hint"]
    assert cli.json("image", "refresh", "i") == here
    cli("create", "w", "--from-image", "i")
    cli("image", "delete", "i")
    assert not copy.exists() and not list((moved / "images").iterdir())


def test_without_a_name(cli: Cli) -> None:
    image = make_image(cli.home / "disk.qcow2", CONTENT, 4 * MiB)
    added = cli.json("image", "add", image)
    assert added["name"] is None
    assert cli.json("image", "show", added["id"][:8]) == added


def test_a_volume_as_an_image(cli: Cli) -> None:
    volume = cli.volume("golden", "--size", "3M", "--property", "a=1")
    cli.fill("golden", CONTENT)
    added = cli.json("image", "add", "i", "volume:golden", "--property", "b=2", "--min-disk", "4M")
    assert added["location"] == f"volume:{volume['id']}"
    assert (added["format"], added["virtual_size"]) == ("raw", 3 * MiB)
    made = cli.volume("v", "--from-image", "i")
    assert (made["size"], made["bootable"], made["properties"]) == (4 * MiB, True, {"a": "1", "b": "2"})
    assert made["source"] == {"kind": "image", "id": added["id"], "name": "i"}
    assert cli.file("v").read_bytes() == CONTENT + b"\0" * 3 * MiB
    direct = cli.volume("w", "--from-image", "volume:golden")
    assert direct["source"]["kind"] == "volume"
    cli.refused(2, "usage", "image", "add", "j", "volume:golden", "--copy")
    cli.refused(4, "not_found", "image", "add", "j", "volume:nothere")
    cli("image", "delete", "i")
    assert cli.file("golden").read_bytes()[:MiB] == CONTENT


def test_a_volume_that_is_an_image_and_is_gone(cli: Cli) -> None:
    cli.volume("golden")
    cli("image", "add", "i", "volume:golden")
    cli("delete", "golden", "--yes")
    cli.refused(4, "not_found", "create", "v", "--from-image", "i")
    assert cli.json("image", "list") == []


@contextmanager
def loop_device(disk: Path, node: str = "-f") -> Iterator[str]:
    attach = ["losetup", "--show", "--read-only", node, str(disk)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.root
def test_a_registered_device_was_allowed_once(cli: Cli) -> None:
    with loop_device(make_image(cli.home / "disk.raw", CONTENT, 3 * MiB, "raw")) as device:
        cli.refused(7, "image_format", "image", "add", "i", device)
        cli("image", "add", "i", device, "--allow-device")
        made = cli.volume("v", "--from-image", "i")
        assert cli.file("v").read_bytes() == CONTENT.ljust(made["size"], b"\0")
        assert cli.json("image", "refresh", "i")["status"] == "available"
        cli.refused(7, "image_format", "create", "w", "--from-image", device)


def test_a_changed_file_is_refused_until_refreshed(cli: Cli) -> None:
    image = make_image(cli.home / "disk.raw", CONTENT, 4 * MiB, "raw")
    before = cli.json("image", "add", "i", image)
    with image.open("r+b") as file:
        file.write(b"changed")
        file.truncate(5 * MiB)
    error = cli.refused(7, "image_unsafe", "create", "v", "--from-image", "i")
    assert "volctl image refresh i" in error["hint"]
    after = cli.json("image", "refresh", "i")
    assert after == before | {"size": 5 * MiB, "virtual_size": 5 * MiB}
    assert cli.volume("v", "--from-image", "i")["size"] == 5 * MiB
    assert cli.file("v").read_bytes()[:7] == b"changed"
    image.unlink()
    cli.refused(4, "not_found", "create", "w", "--from-image", "i")
    cli.refused(4, "not_found", "image", "refresh", "i")


def test_a_file_that_became_another_format(cli: Cli) -> None:
    """A guest that wrote a qcow2 header into its raw disk is not believed."""
    image = make_image(cli.home / "disk.raw", CONTENT, 4 * MiB, "raw")
    cli("image", "add", "i", image)
    make_image(image, CONTENT, 4 * MiB)
    cli.refused(7, "image_format", "create", "v", "--from-image", "i")
    assert cli.json("image", "refresh", "i")["format"] == "qcow2"


def test_check(cli: Cli) -> None:
    image = make_image(cli.home / "disk.qcow2", CONTENT, 4 * MiB)
    found = cli.json("image", "check", "disk.qcow2")
    assert (found["format"], found["virtual_size"], found["path"]) == ("qcow2", 4 * MiB, str(image))
    assert not cli.json("image", "list")


def test_a_path_with_signs_of_protocols(cli: Cli) -> None:
    for name in ("nbd:x.qcow2", "json:{}.qcow2", "-o.qcow2", "a b;$(id).qcow2", "日本.qcow2"):
        image = make_image(cli.home / "plain.qcow2", CONTENT, MiB).rename(cli.home / name)
        assert cli.json("image", "add", "--", name)["location"] == str(image)
        made = cli.json("create", "--from-image", f"./{name}")
        assert made["source"]["name"] == str(image)
        assert cli.file(made["id"]).read_bytes() == CONTENT


def test_the_name_of_an_image_comes_before_a_path(cli: Cli) -> None:
    small = make_image(cli.home / "i", CONTENT, MiB, "raw")
    assert cli.json("create", "--from-image", "i", "-n")["size"] == MiB
    cli("image", "add", "i", make_image(cli.home / "large", CONTENT, 2 * MiB, "raw"))
    assert cli.json("create", "--from-image", "i", "-n")["size"] == 2 * MiB
    assert cli.json("create", "--from-image", small, "-n")["size"] == MiB


def test_several(cli: Cli) -> None:
    for name in ("a", "b"):
        cli("image", "add", name, make_image(cli.home / f"{name}.raw", CONTENT, MiB, "raw"))
    assert [image["name"] for image in cli.json("image", "show", "b", "a")] == ["b", "a"]
    cli("image", "delete", "a", "nothere", "b", status=3)
    assert cli.json("image", "list") == []


def test_a_failed_create_from_an_image_tells_the_program(cli: Cli) -> None:
    make_image(cli.home / "i.qcow2", CONTENT, MiB)
    told = cli("create", "v", "--from-image", "i.qcow2", "--verbose").err
    assert "qemu-img" in told
    assert "CreateVolumeFromSpecTask" in told


def test_the_beginning_of_two_ids(cli: Cli) -> None:
    for name, id in (("one", "abcdef00-0000-4000-8000-000000000001"), ("two", "abcdef00-0000-4000-8000-000000000002")):
        cli.json("image", "add", name, make_image(cli.home / name, CONTENT, MiB))
        with closing(sqlite3.connect(cli.state / "volctl.db")) as database, database:
            database.execute("UPDATE images SET id = ? WHERE name = ?", (id, name))
    told = cli.refused(4, "ambiguous", "create", "v", "--from-image", "abcdef")
    assert "one" in told["message"] and "two" in told["message"]
    assert cli.json("create", "v", "--from-image", "abcdef00-0000-4000-8000-000000000002")["source"]["name"] == "two"


def test_a_source_whose_file_is_gone_is_not_tried_again(cli: Cli) -> None:
    cli.volume("origin")
    cli.file("origin").unlink()
    told = cli.error(4, "not_found", "create", "copy", "--from-volume", "origin")
    assert "gone from backend local" in told["message"]
    copy = cli.json("show", "copy")
    assert (copy["status"], copy["fault"]["code"], len(copy["attempts"])) == ("error", "not_found", 1)


@pytest.mark.parametrize(
    "words", [["--checksum", f"sha256:{'a' * 64}"], ["--image-format", "qcow2"], ["--signature", "s"]]
)
def test_an_image_that_is_a_volume_cannot_be_proved(words: list[str], cli: Cli) -> None:
    """What was asked for is done, or refused."""
    cli.volume("golden", "--size", "4M")
    assert "is a volume" in cli.refused(2, "usage", "image", "add", "i", "volume:golden", *words)["message"]
    cli("image", "add", "i", "volume:golden")
    for source in ("i", "volume:golden"):
        assert "is a volume" in cli.refused(2, "usage", "create", "v", "--from-image", source, *words)["message"]


def test_an_image_goes_with_the_volume_that_it_is_and_that_is_said(cli: Cli) -> None:
    cli.volume("golden", "--size", "4M")
    cli("image", "add", "i", "volume:golden")
    assert "image i is this volume" in cli("delete", "golden", "--yes").err
    assert cli.json("image", "list") == []


@pytest.mark.root
def test_a_copy_of_a_device_holds_what_it_held(cli: Cli) -> None:
    make_image(cli.home / "disk.raw", b"device", 4 * MiB, "raw")
    with loop_device(cli.home / "disk.raw") as device:
        cli("image", "add", "i", device, "--allow-device", "--copy")
        cli("image", "add", "there", device, "--allow-device")
    cli("create", "v", "--from-image", "i")
    assert cli.file("v").read_bytes() == (cli.home / "disk.raw").read_bytes()
    (cli.home / "other.raw").write_bytes(bytes(8 * MiB))
    with loop_device(cli.home / "other.raw", device):
        assert "has changed" in cli.refused(7, "image_unsafe", "create", "w", "--from-image", "there")["message"]


def test_what_was_fetched_for_another_database_is_told(cli: Cli) -> None:
    cli("list")
    stray = [cli.state / "images" / f"{uuid.uuid4()}{end}" for end in ("", ".part", ".new")]
    for path in stray:
        path.write_bytes(b"x")
    assert {found["object"] for found in cli.json("doctor", status=12)} == {path.name for path in stray}
    cli("doctor", "--fix", "--yes")
    assert cli.json("doctor") == [] and not any(path.exists() for path in stray)


@pytest.mark.parametrize("words", ["--checksum f", "--signature f --keyring k", "--signature k --keyring f"])
def test_a_pipe_that_says_nothing_is_waited_for_until_the_timeout(words: str, cli: Cli) -> None:
    make_image(cli.home / "disk.raw", CONTENT, 4 * MiB, "raw")
    os.mkfifo(cli.home / "f")
    (cli.home / "k").write_bytes(b"k")
    cli.refused(124, "timeout", "create", "v", "--from-image", "disk.raw", *words.split(), "--timeout", "1")

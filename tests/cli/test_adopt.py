"""adopt and release: what is there becomes a volume in place and is let go of again, byte for byte."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MiB, qemu_img
from tests.conftest import IS_ROOT, NOBODY, Volctl


@pytest.fixture
def thing(cli: Cli) -> Path:
    """A file of 2 MiB in the pool of the built-in backend that is not ours."""
    cli("list")
    cli.volume("other")
    path = cli.pool / "thing.raw"
    path.write_bytes(random.Random(1).randbytes(2 * MiB))
    path.chmod(0o640)
    return path


def marks(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_mode


@pytest.mark.parametrize("way", ["name", "path", "relative"])
def test_a_file_becomes_a_volume_and_a_file_again(way: str, cli: Cli, thing: Path) -> None:
    content, before = thing.read_bytes(), marks(thing)
    source = {"name": thing.name, "path": str(thing), "relative": os.path.relpath(thing, cli.home)}[way]
    made = cli.json("adopt", "local", source, "web", "--property", "role=web", "--description", "old")
    assert (made["name"], made["size"], made["status"], made["backend"]) == ("web", 2 * MiB, "available", "local")
    assert (made["properties"], made["description"]) == ({"role": "web"}, "old")
    assert made["source"] == {"kind": "image", "id": None, "name": str(thing)}
    assert not thing.exists() and cli.file("web").read_bytes() == content
    assert marks(cli.file("web")) == before
    assert cli.quota()["gigabytes"]["in_use"] == 3 * MiB
    assert cli.json("doctor") == []
    cli("create", "copy", "--from-volume", "web")
    told = cli.json("release", "web")
    assert told == {"id": made["id"], "name": "web", "backend": "local", "path": str(cli.pool / "web")}
    assert marks(cli.pool / "web") == before and (cli.pool / "web").read_bytes() == content
    assert os.listxattr(cli.pool / "web") == []
    assert sorted(volume["name"] for volume in cli.json("list")) == ["copy", "other"]
    assert cli.json("doctor") == []
    assert cli.events(made["id"]) == ["volume.status", "volume.status", "adopt.end", "volume.status", "release.end"]
    cli("adopt", "local", "web", "web")


def test_a_name_that_is_taken_is_left(cli: Cli, thing: Path) -> None:
    made = cli.json("adopt", "local", "thing.raw")
    (cli.pool / f"released-{made['id']}").write_text("somebody's")
    told = cli.json("release", made["id"])
    assert told["path"] == str(cli.pool / f"released-{made['id']}-2")
    assert (cli.pool / f"released-{made['id']}").read_text() == "somebody's"


ID = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("loop", f"{prefix}{ID}") for prefix in ("revert-", "volume-", "snap-", "image-")]
    + [("qcow2", f"{prefix}{ID}") for prefix in ("new-volume-", "new-image-", "new-layer-", "layer-", "volume-")]
    + [("loop", "revert-old"), ("qcow2", "layer-x"), ("qcow2", "new-volume-2")],
)
def test_a_name_that_would_be_taken_for_ours_is_not_given(kind: str, name: str, cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "b"\nkind = "{kind}"\ndirectory = "{cli.home}/b"\n')
    cli("backend", "init", "b", "--yes")
    cli.volume(name)
    content = cli.file(name).read_bytes()
    path = Path(cli.json("release", name)["path"])
    assert path.name == f"released-{name}"
    assert [finding["object"] for finding in cli.json("doctor", "--foreign")] == [path.name]
    cli("doctor", "--fix", "--yes")
    assert path.read_bytes() == content
    cli("adopt", "b", path.name, "again")


def elsewhere(path: Path) -> str:
    other = path.parents[2] / "elsewhere.raw"
    path.rename(other)
    return str(other)


def symlink(path: Path) -> str:
    (path.parent / "link").symlink_to(path)
    return "link"


def hard_link(path: Path) -> str:
    os.link(path, path.parents[2] / "linked")
    return path.name


def directory(path: Path) -> str:
    (path.parent / "directory").mkdir()
    return "directory"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return path.name


def no_sectors(path: Path) -> str:
    os.truncate(path, MiB + 100)
    return path.name


def qcow2(path: Path) -> str:
    path.unlink()
    qemu_img("create", "-f", "qcow2", path, "2M")
    os.truncate(path, 512 * 1024)
    return path.name


def a_volume(path: Path) -> str:
    return next(path.parent.glob("volume-*")).name


UNFIT = [
    (elsewhere, 2, "usage"),
    (symlink, 2, "usage"),
    (hard_link, 2, "usage"),
    (directory, 2, "usage"),
    (empty, 2, "usage"),
    (no_sectors, 2, "usage"),
    (qcow2, 7, "image_format"),
    (a_volume, 5, "conflict"),
    (lambda path: ".volctl", 2, "usage"),
    (lambda path: "nothing", 4, "not_found"),
    (lambda path: "", 2, "usage"),
    (lambda path: "..", 2, "usage"),
]


@pytest.mark.parametrize(("spoil", "status", "code"), UNFIT)
def test_what_is_not_adopted(spoil: object, status: int, code: str, cli: Cli, thing: Path) -> None:
    source = spoil(thing)  # type: ignore[operator]
    error = cli.refused(status, code, "adopt", "local", source, "web")
    if spoil is elsewhere:
        assert error["hint"].startswith(f"move it there first: mv {source}")


def test_a_size_that_is_no_whole_mib_stays(cli: Cli, thing: Path) -> None:
    os.truncate(thing, MiB + 512)
    ran = cli("adopt", "local", "thing.raw", "web", "--json")
    assert "no whole number of MiB" in ran.err
    assert ran.json()["size"] == cli.file("web").stat().st_size == MiB + 512
    assert cli.json("doctor") == []
    assert cli.json("extend", "web", "2M")["size"] == 2 * MiB


def test_a_name_and_a_quota_are_told_before(cli: Cli, thing: Path) -> None:
    cli.refused(5, "exists", "adopt", "local", "thing.raw", "other")
    cli.refused(4, "not_found", "adopt", "nowhere", "thing.raw", "web")
    cli("quota", "set", "--volumes", "1")
    cli.refused(6, "quota", "adopt", "local", "thing.raw", "web")
    assert thing.exists()


@pytest.mark.parametrize("kind", ["loop", "qcow2"])
def test_a_file_that_was_put_in_the_place_of_the_one_that_was_looked_at(
    kind: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.configure(f'[[backend]]\nname = "b"\nkind = "{kind}"\ndirectory = "{cli.home}/b"\n')
    cli("backend", "init", "b", "--yes")
    thing, other = cli.home / "b" / "thing", cli.home / "b" / "other"
    for path in (thing, other):
        qemu_img("create", "-f", "raw" if kind == "loop" else kind, path, "2M")
    os.setxattr(other, "user.volctl", b"somebody's")
    looked_at, put_there = marks(thing), marks(other)

    def swap(point: str) -> None:
        if point == "after commit" and other.exists():
            thing.rename(cli.home / "b" / "away")
            other.rename(thing)

    monkeypatch.setattr("volctl.db.store.probe", swap)
    error = cli.error(5, "conflict", "adopt", "b", "thing", "web")
    assert "another file than the one that was looked at" in error["message"]
    assert marks(cli.home / "b" / "away") == looked_at and marks(thing) == put_there
    assert os.getxattr(thing, "user.volctl") == b"somebody's"
    assert cli.json("list") == [] and cli.json("doctor") == []
    cli("adopt", "b", "thing", "web")


def test_what_somebody_holds(cli: Cli, thing: Path, volctl: Volctl) -> None:
    for path, words in ((thing, ["adopt", "local", "thing.raw"]), (cli.file("other"), ["release", "other"])):
        with path.open("rb") as file, subprocess.Popen(["sleep", "600"], stdin=file) as holder:
            ran = volctl(*words, "--json", status=5)
            assert f"sleep (pid {holder.pid})" in ran.err and '"in_use"' in ran.err
            assert path.exists()
            holder.kill()
    assert [volume["status"] for volume in cli.json("list")] == ["available"]


def test_what_is_not_released(cli: Cli) -> None:
    cli.volume("v")
    cli("snapshot", "create", "v", "s")
    assert "snapshots: s" in cli.refused(5, "conflict", "release", "v")["message"]
    cli("snapshot", "delete", "s", "--yes")
    cli("protect", "v")
    cli.refused(5, "protected", "release", "v")
    cli("unprotect", "v")
    cli.refused(4, "not_found", "release", "w")
    cli("release", "v")
    assert cli.json("list") == []


@pytest.mark.parametrize("way", ["path", "symlink", "bind"])
def test_a_file_that_is_a_registered_image_is_not_adopted(way: str, cli: Cli, thing: Path) -> None:
    location = thing
    if way == "symlink":
        (cli.home / "pool").symlink_to(cli.pool)
        location = cli.home / "pool" / thing.name
    if way == "bind":
        if not IS_ROOT:
            pytest.skip("needs root to mount")
        (cli.home / "pool").mkdir()
        subprocess.run(["mount", "--bind", cli.pool, cli.home / "pool"], check=True)
        location = cli.home / "pool" / thing.name
    try:
        image = cli.json("image", "add", "debian", location)
        error = cli.refused(5, "conflict", "adopt", "local", thing.name, "web")
    finally:
        if way == "bind":
            subprocess.run(["umount", cli.home / "pool"], check=True)
    assert "image debian" in error["message"] and "volctl image delete debian" in error["hint"]
    cli("image", "delete", image["id"], "--yes")
    cli("adopt", "local", thing.name, "web")


@pytest.mark.parametrize("way", ["volume", "file"])
def test_a_volume_that_is_a_registered_image_is_not_released(way: str, cli: Cli) -> None:
    made = cli.volume("v")
    cli("image", "add", "base", f"volume:{made['id']}" if way == "volume" else cli.file("v"))
    error = cli.refused(5, "conflict", "release", "v")
    assert "image base" in error["message"] and error["volume"] == made["id"]
    cli("create", "w", "--from-image", "base")
    cli("image", "delete", "base", "--yes")
    cli("release", "v")
    assert cli.json("doctor") == []


def test_a_name_that_is_not_utf_8(cli: Cli, thing: Path) -> None:
    odd = thing.rename(os.fsdecode(os.fsencode(thing.parent) + b"/disk-\xff.raw"))
    for source in (odd.name, str(odd)):
        assert "rename" in cli.refused(2, "usage", "adopt", "local", source, "web")["hint"]
    for words in (["create", "web", "--from-image"], ["image", "add", "web"]):
        assert "rename" in cli.refused(2, "usage", *words, odd)["hint"]
    assert odd.exists()


def test_a_directory_whose_name_is_not_utf_8(cli: Cli, thing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path does not tell, and what is kept is the whole one."""
    odd = Path(os.fsdecode(os.fsencode(cli.home) + b"/\xff"))
    odd.mkdir()
    (odd / "disk.raw").write_bytes(bytes(MiB))
    monkeypatch.chdir(odd)
    for words in (["create", "web", "--from-image"], ["image", "add", "web"]):
        cli.refused(2, "usage", *words, "disk.raw")


def test_a_qcow2_file(cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "q"\nkind = "qcow2"\ndirectory = "{cli.home}/q"\n')
    cli("backend", "init", "q", "--yes")
    file, over = cli.home / "q" / "disk.qcow2", cli.home / "q" / "over.qcow2"
    qemu_img("create", "-f", "qcow2", file, "5M")
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", file.name, over)
    content = file.read_bytes()
    cli.refused(5, "conflict", "adopt", "q", "over.qcow2", "w")
    (cli.home / "q" / "plain").write_bytes(bytes(MiB))
    cli.refused(2, "usage", "adopt", "q", "plain", "w")
    made = cli.json("adopt", "q", "disk.qcow2", "v")
    assert (made["size"], cli.file("v").read_bytes()) == (5 * MiB, content)
    cli("snapshot", "create", "v", "s")
    cli.refused(5, "conflict", "release", "v")
    cli("snapshot", "delete", "s", "--yes")
    assert cli.json("doctor") == []
    assert Path(cli.json("release", "v")["path"]).exists()
    assert not list((cli.home / "q").glob(".volctl-*"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def l1_past_the_end(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(40)
        file.write((1 << 40).to_bytes(8))


@pytest.mark.parametrize("kind", [[], ["-o", "extended_l2=on"], ["-c"]], ids=["plain", "subclusters", "compressed"])
@pytest.mark.parametrize("spoil", [cut, l1_past_the_end])
def test_a_qcow2_file_that_is_not_whole(spoil: Callable[[Path], None], kind: list[str], cli: Cli) -> None:
    """What the gate of images refuses: its bytes are not all there, and a guest would see errors or worse."""
    cli.configure(f'[[backend]]\nname = "q"\nkind = "qcow2"\ndirectory = "{cli.home}/q"\n')
    cli("backend", "init", "q", "--yes")
    file, raw = cli.home / "q" / "disk.qcow2", cli.home / "disk.raw"
    raw.write_bytes(random.Random(1).randbytes(8 * MiB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *kind, raw, file)
    spoil(file)
    cli.refused(7, "image_corrupt", "create", "v", "--from-image", file)
    assert "is cut off" in cli.refused(7, "image_corrupt", "adopt", "q", file.name, "v")["message"]


@pytest.mark.parametrize(("at", "octets"), [(79, b"\x02"), (8, b"\xff" * 8)], ids=["corrupt bit", "header"])
def test_a_qcow2_file_that_says_so_itself(at: int, octets: bytes, cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "q"\nkind = "qcow2"\ndirectory = "{cli.home}/q"\n')
    cli("backend", "init", "q", "--yes")
    file = cli.home / "q" / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", file, "5M")
    with file.open("r+b") as open_file:
        open_file.seek(at)
        open_file.write(octets)
    cli.refused(7, "image_corrupt", "adopt", "q", file.name, "v")


def test_a_cached_image_is_not_adopted(cli: Cli) -> None:
    """Volumes lie over it, and the next of the image would."""
    cli.configure(f'[[backend]]\nname = "q"\nkind = "qcow2"\ndirectory = "{cli.home}/q"\n')
    cli("backend", "init", "q", "--yes")
    (cli.home / "disk.raw").write_bytes(b"image" * MiB)
    cli("create", "v", "--from-image", "disk.raw")
    (entry,) = cli.json("image", "cache", "list")
    assert "cache" in cli.refused(5, "conflict", "adopt", "q", f"image-{entry['id']}", "w")["message"]


@pytest.mark.root
def test_a_file_that_one_may_rename_but_not_mark_is_left(as_user: Volctl) -> None:
    """Of somebody else, in a directory of ours: it could neither become a volume nor have its name back."""
    as_user("create", "other", "--size", "1M")
    thing = as_user.state / "volumes" / "thing.raw"
    thing.write_bytes(bytes(MiB))
    thing.chmod(0o644)
    before = marks(thing)
    assert "chown" in as_user("adopt", "local", "thing.raw", "mine", status=9).err
    assert marks(thing) == before
    assert [volume["name"] for volume in as_user("list", "--json").json()] == ["other"]
    os.chown(thing, NOBODY, NOBODY)
    as_user("adopt", "local", "thing.raw", "mine")


@pytest.mark.root
def test_a_volume_whose_file_became_somebody_elses_has_its_name_back(as_user: Volctl) -> None:
    """The kernel lets nobody link another's file; to rename it is allowed."""
    as_user("create", "v", "--size", "1M")
    file = Path(as_user("path", "v").out.strip())
    os.chown(file, 0, 0)
    file.chmod(0o644)
    path = Path(as_user("release", "v", "--json").json()["path"])
    assert path.name == "v" and path.stat().st_size == MiB and not file.exists()

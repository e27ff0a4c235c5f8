"""Images cached where files share blocks, through the command line."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.test_loop import extents, free
from tests.cli.conftest import Cli, MiB, make_image, zeros


@pytest.fixture
def pool(reflink_mount: Path, cli: Cli) -> Iterator[Path]:
    """The one backend, `files`, on a file system that shares blocks."""
    directory = reflink_mount / str(uuid.uuid4())
    cli.configure(f'[[backend]]\nname = "files"\nkind = "loop"\ndirectory = "{directory}"\n')
    cli("backend", "init", "files", "-y")
    yield directory
    subprocess.run(["rm", "-r", str(directory)], check=True)


def test_the_second_volume_shares_the_blocks_of_the_first(pool: Path, cli: Cli) -> None:
    content = os.urandom(48 * MiB)
    image = make_image(cli.home / "disk.qcow2", content, 64 * MiB)
    cli("create", "v", "--from-image", image)
    (entry,) = cli.json("image", "cache", "list")
    held = pool / f"image-{entry['id']}"
    assert (entry["backend"], entry["size"], held.stat().st_size) == ("files", 64 * MiB, 64 * MiB)
    before = free(pool)
    again = cli("create", "w", "--from-image", image, "--size", "100M", "-v")
    assert before - free(pool) < 4 * MiB
    assert "qemu-img" not in again.err
    for name in ("v", "w"):
        assert extents(cli.file(name))[0][:2] == extents(held)[0][:2]
        assert cli.file(name).read_bytes()[: len(content)] == content
        assert zeros(cli.file(name), len(content))
    assert [volume["name"] for volume in cli.json("list")] == ["v", "w"]


def test_a_guest_that_writes_does_not_change_the_next_volume(pool: Path, cli: Cli) -> None:
    content = os.urandom(2 * MiB)
    image = make_image(cli.home / "disk.qcow2", content, 4 * MiB)
    cli("create", "v", "--from-image", image)
    cli.fill("v", b"guest" * 1000)
    cli("extend", "v", "8M")
    cli("delete", "v", "-y")
    cli("create", "w", "--from-image", image)
    assert cli.file("w").read_bytes()[: len(content)] == content
    assert cli("image", "cache", "prune", "--all").status == 0
    assert cli.file("w").read_bytes()[: len(content)] == content
    assert sorted(path.name for path in pool.iterdir() if not path.name.startswith(".volctl")) == [cli.file("w").name]


def test_a_raw_image_beside_the_volumes_is_cloned_in_place_and_not_cached(pool: Path, cli: Cli) -> None:
    image = pool.parent / "disk.raw"
    image.write_bytes(os.urandom(2 * MiB))
    cli("create", "v", "--from-image", image)
    assert cli.json("image", "cache", "list") == []
    assert extents(cli.file("v"))[0][:2] == extents(image)[0][:2]


def test_a_raw_image_from_elsewhere_is_cached(pool: Path, cli: Cli) -> None:
    content = os.urandom(2 * MiB)
    image = make_image(cli.home / "disk.raw", content, 3 * MiB, "raw")
    for name in ("v", "w"):
        cli("create", name, "--from-image", image)
        assert cli.file(name).read_bytes() == content.ljust(3 * MiB, b"\0")
    assert len(cli.json("image", "cache", "list")) == 1


def test_a_copy_that_moved_with_the_state_directory_is_still_what_was_cached(
    pool: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("image", "add", "i", make_image(cli.home / "disk.qcow2", os.urandom(MiB), 2 * MiB), "--copy")
    cli("create", "v", "--from-image", "i")
    cached = cli.json("image", "cache", "list")
    assert len(cached) == 1
    monkeypatch.setenv("VOLCTL_STATE_DIR", str(cli.state.rename(cli.home / "moved")))
    assert cli.json("image", "cache", "prune") == []
    assert "qemu-img" not in cli("create", "w", "--from-image", "i", "-v").err
    cli("image", "delete", "i")
    assert cli.json("image", "cache", "list") == []


def test_backend_show_says_that_images_are_cached_and_what_they_take(pool: Path, cli: Cli) -> None:
    assert cli.json("backend", "show", "files")["image_cache"]["images"] == 0
    cli("create", "v", "--from-image", make_image(cli.home / "disk.qcow2", os.urandom(MiB), 3 * MiB))
    told = cli.json("backend", "show", "files")
    wanted = {"used": True, "reason": None, "images": 1, "size": 3 * MiB, "max_count": 50, "max_size": 100 << 30}
    assert told["image_cache"] == wanted
    assert (told["volumes"], told["provisioned"]) == (1, 6 * MiB)


def test_overlays_keep_what_they_lie_over(cli: Cli) -> None:
    """On qcow2 an image in use cannot go: another is not cached then, and the volumes stay whole."""
    cli.configure(
        f'[image_cache]\nmax_count = 1\n[[backend]]\nname = "disks"\nkind = "qcow2"\ndirectory = "{cli.home}/disks"\n'
    )
    cli("backend", "init", "disks", "-y")
    first, second = (make_image(cli.home / f"{name}.qcow2", os.urandom(2 * MiB), 3 * MiB) for name in "ab")
    cli("create", "v", "--from-image", first)
    again = cli("create", "w", "--from-image", first, "--size", "5M", "-v")
    assert [line.split()[2] for line in again.err.splitlines() if line.startswith("+ qemu-img")] == ["create"]
    cli("create", "x", "--from-image", second)
    assert [entry["location"] for entry in cli.json("image", "cache", "list")] == [str(first)]
    assert cli.json("image", "cache", "prune", "--all") == []
    for name, image in (("v", first), ("w", first), ("x", second)):
        compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(image), str(cli.file(name))]
        assert subprocess.run(compare, check=False, capture_output=True).returncode == 0
    cli("delete", "v", "w", "-y")
    assert len(cli.json("image", "cache", "prune", "--all")) == 1
    assert [path.name for path in (cli.home / "disks").iterdir() if not path.name.startswith(".volctl")] == [
        cli.file("x").name
    ]
    assert cli.json("doctor") == []

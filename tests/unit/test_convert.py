"""The copy is exact, sparse, and leaves the target's length alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import tmpfs
from tests.unit import image_corpus as corpus
from volctl.backend import Target
from volctl.errors import BackendError, ImageTooBigError, ImageUnsafeError, InUseError, NoSpaceError, VolctlError
from volctl.images.convert import copy_image, copy_raw
from volctl.images.gate import open_image

VOLUME = 32 * corpus.MiB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.raw(tmp_path_factory.mktemp("disk") / "disk.raw")


def silent(done: int, total: int) -> None:
    pass


def blank(path: Path, size: int = VOLUME) -> Target:
    with path.open("wb") as file:
        file.truncate(size)
    return Target(path, "raw", zeroed=True)


def dirty(path: Path, size: int = VOLUME) -> Target:
    path.write_bytes(b"\xee" * size)
    return Target(path, "raw", zeroed=False)


def copy(image: Path, target: Target) -> None:
    with open_image(str(image)) as checked:
        copy_image(checked, target, silent)


def holds(target: Target, disk: Path, size: int = VOLUME) -> bool:
    return target.path.read_bytes() == disk.read_bytes().ljust(size, b"\0")


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("name", ["raw", "vmdk-footer", *corpus.ACCEPTED])
def test_round_trip(name: str, tmp_path: Path, disk: Path) -> None:
    image = tmp_path / "image"
    if name == "raw":
        image = disk
    elif name == "vmdk-footer":
        corpus.stream_with_footer(disk, image)
    else:
        corpus.convert(disk, image, *corpus.ACCEPTED[name])
    target = blank(tmp_path / "volume")
    copy(image, target)
    assert holds(target, disk)
    assert allocated(target.path) <= allocated(disk) * 1.01 + 8192


@pytest.mark.parametrize("make", [blank, dirty])
@pytest.mark.parametrize("name", ["raw", "qcow2-1.1"])
def test_tail_and_holes_of_a_used_target(name: str, make: Callable[[Path], Target], tmp_path: Path, disk: Path) -> None:
    image = disk if name == "raw" else corpus.convert(disk, tmp_path / "image", *corpus.ACCEPTED[name])
    target = make(tmp_path / "volume")
    copy(image, target)
    assert holds(target, disk)


@pytest.mark.parametrize("length", [1, 511, 513, 100_000, 3 * corpus.MiB - 1])
@pytest.mark.parametrize("make", [blank, dirty])
def test_odd_length(length: int, make: Callable[[Path, int], Target], tmp_path: Path) -> None:
    image = corpus.text(tmp_path / "image", os.urandom(length))
    target = make(tmp_path / "volume", 3 * corpus.MiB)
    copy(image, target)
    assert holds(target, image, 3 * corpus.MiB)


def test_internal_snapshot_gives_the_present_state(tmp_path: Path, disk: Path) -> None:
    image = corpus.convert(disk, tmp_path / "image", "qcow2")
    corpus.qemu_img("snapshot", "-c", "before", image)
    target = blank(tmp_path / "volume")
    copy(image, target)
    assert holds(target, disk)


def test_raw_content_is_never_probed(tmp_path: Path, disk: Path) -> None:
    """A volume whose guest wrote a qcow2 header with a backing file is copied as the bytes it is."""
    trap = tmp_path / "trap"
    corpus.qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", trap, "1M")
    os.truncate(trap, corpus.MiB)
    target = blank(tmp_path / "volume", corpus.MiB)
    copy_raw(Target(trap, "raw", zeroed=False), target, silent)
    assert holds(target, trap, corpus.MiB)


@pytest.mark.parametrize("make", [blank, dirty])
def test_copy_raw(make: Callable[[Path], Target], tmp_path: Path, disk: Path) -> None:
    target = make(tmp_path / "volume")
    copy_raw(Target(disk, "raw", zeroed=False), target, silent)
    assert holds(target, disk)


def test_copy_raw_between_qcow2(tmp_path: Path, disk: Path) -> None:
    source = Target(corpus.convert(disk, tmp_path / "source", "qcow2"), "qcow2", zeroed=False)
    target = tmp_path / "target"
    corpus.qemu_img("create", "-f", "qcow2", target, str(corpus.DISK))
    copy_raw(source, Target(target, "qcow2", zeroed=True), silent)
    corpus.qemu_img("compare", "-f", "qcow2", "-F", "raw", target, disk)


@pytest.mark.parametrize("name", ["with:colon", "--force", "a,b=c", "json:{}", "sp ace"])
def test_names(name: str, tmp_path: Path, disk: Path) -> None:
    image = corpus.convert(disk, tmp_path / f"image {name}", "qcow2")
    target = blank(tmp_path / name)
    copy(image, target)
    assert holds(target, disk)


def test_progress(tmp_path: Path, disk: Path) -> None:
    told: list[tuple[int, int]] = []
    with open_image(str(disk)) as checked:
        copy_image(checked, blank(tmp_path / "volume"), lambda done, total: told.append((done, total)))
    assert told[-1] == (corpus.DISK, corpus.DISK)
    assert len(told) > 2
    assert told == sorted(told)


def test_too_small(tmp_path: Path, disk: Path) -> None:
    target = blank(tmp_path / "volume", corpus.DISK - 512)
    with pytest.raises(ImageTooBigError):
        copy(disk, target)
    assert allocated(target.path) == 0
    with pytest.raises(BackendError):
        copy_raw(Target(disk, "raw", zeroed=False), target, silent)


def test_missing_target_is_not_made(tmp_path: Path, disk: Path) -> None:
    with pytest.raises(BackendError):
        copy(disk, Target(tmp_path / "volume", "raw", zeroed=True))
    assert not (tmp_path / "volume").exists()


def test_changed_since_the_check(tmp_path: Path, disk: Path) -> None:
    image = corpus.convert(disk, tmp_path / "image", "qcow2")
    target = blank(tmp_path / "volume")
    with open_image(str(image)) as checked:
        corpus.patch(image, -1, b"x")
        with pytest.raises(ImageUnsafeError):
            copy_image(checked, target, silent)
    assert allocated(target.path) == 0


def test_changed_while_it_is_copied(tmp_path: Path, disk: Path) -> None:
    image = corpus.convert(disk, tmp_path / "image", "qcow2")
    with open_image(str(image)) as checked, pytest.raises(ImageUnsafeError):
        copy_image(checked, blank(tmp_path / "volume"), lambda done, total: os.utime(image))


def test_replaced_since_the_check(tmp_path: Path, disk: Path) -> None:
    """The descriptor that was checked is copied, not what the name means by then; or it is refused."""
    image = corpus.convert(disk, tmp_path / "image", "qcow2")
    target = blank(tmp_path / "volume")
    with open_image(str(image)) as checked:
        corpus.qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", tmp_path / "evil", "1M")
        (tmp_path / "evil").rename(image)
        with pytest.raises(ImageUnsafeError):
            copy_image(checked, target, silent)
    assert allocated(target.path) == 0


@pytest.fixture
def held(tmp_path: Path, disk: Path) -> Iterator[Path]:
    """A qcow2 that another program has open for writing."""
    image = corpus.convert(disk, tmp_path / "held", "qcow2")
    holder = subprocess.Popen(["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.read(1)
    yield image
    holder.communicate(b"quit\n")


def test_source_in_use(held: Path, tmp_path: Path) -> None:
    with pytest.raises(InUseError) as caught:
        copy_raw(Target(held, "qcow2", zeroed=False), blank(tmp_path / "volume"), silent)
    assert str(held) in caught.value.message


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with 4 MiB."""
    with tmpfs(tmp_path / "small", "4m") as place:
        yield place


def test_full_disk(small: Path, tmp_path: Path) -> None:
    image = corpus.text(tmp_path / "image", os.urandom(8 * corpus.MiB))
    with pytest.raises(NoSpaceError):
        copy(image, blank(small / "volume", 8 * corpus.MiB))


@pytest.mark.parametrize("make", [blank, dirty])
def test_memory_file_system(make: Callable[[Path, int], Target], small: Path, tmp_path: Path) -> None:
    image = corpus.text(tmp_path / "image", os.urandom(corpus.MiB))
    target = make(small / "volume", 2 * corpus.MiB)
    copy(image, target)
    assert holds(target, image, 2 * corpus.MiB)


def test_a_damaged_stream_fails_or_is_refused(tmp_path: Path, disk: Path) -> None:
    """Compressed data that does not unpack is an error of the copy, never wrong bytes."""
    image = corpus.convert(disk, tmp_path / "image", "qcow2", "-c")
    data = image.read_bytes()
    corpus.patch(image, len(data) // 2, b"\xff" * 4096)
    target = blank(tmp_path / "volume")
    try:
        copy(image, target)
    except VolctlError:
        return
    assert target.path.stat().st_size == VOLUME

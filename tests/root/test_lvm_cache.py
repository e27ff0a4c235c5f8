"""The image cache on thin LVs: filled once, told apart from volumes, and never what a create fails of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.root import lvm_oracle
from tests.root.lvm_rig import lvs, run, volume_group, words
from tests.root.warm import Warm
from volctl.model import MiB

GROUP = "cache-group"
SIZE = 16 * MiB
MANY = 8


@pytest.fixture
def on(warm: Warm, disks: list[Path]) -> Iterator[Warm]:
    with volume_group(disks[:2], GROUP):
        warm.configure(GROUP, cached=50, provisioning="thin", pool_size="300M")
        yield warm


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """16 MiB: data, a hole, data."""
    raw = tmp_path / "raw"
    raw.write_bytes(b"i" * 3 * MiB + bytes(9 * MiB) + b"j" * 4 * MiB)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "image.qcow2")
    return raw


@pytest.fixture
def image(raw: Path) -> Path:
    return raw.with_name("image.qcow2")


def cached(on: Warm) -> list[Any]:
    entries: list[Any] = on("image", "cache", "list", "--json").json()
    return entries


def hold(on: Warm, raw: Path, *names: str) -> bool:
    """Each reads as the image, then zeros."""
    devices = [f"{GROUP}/{on.lv(name)}" for name in names]
    with lvm_oracle.awake(devices):
        return not any(oracle.differs(Path("/dev", lv), oracle.Content(raw)) for lv in devices)


def data_percent() -> float:
    return float(words("lvs", "--noheadings", "-o", "data_percent", f"{GROUP}/volctl")[0])


def converted(points: list[str]) -> int:
    return sum(point.startswith("start qemu-img convert") for point in points)


def test_the_second_volume_is_a_snapshot_of_the_cached_image(on: Warm, image: Path, raw: Path) -> None:
    """Its time and its bytes do not depend on the image: nothing is copied, no program but LVM's runs."""
    first = on("create", "a", "--from-image", image, programs=True)
    (entry,) = cached(on)
    before = data_percent()
    second = on("create", "b", "--from-image", image, "--size", "20M", programs=True)
    assert (converted(first.points), "qemu-img" in "".join(second.points)) == (1, False)
    assert data_percent() - before < 0.5
    assert lvs(GROUP, "lv_name=~^image && lv_active=active") == []
    assert hold(on, raw, "a", "b")
    on("delete", "a", "-y")
    assert [gone["id"] for gone in on("image", "cache", "prune", "--all", "--json").json()] == [entry["id"]]
    assert hold(on, raw, "b")
    assert set(lvs(GROUP)) == {"volctl", on.lv("b")}


def test_a_cached_image_is_no_volume(on: Warm, image: Path) -> None:
    on("create", "a", "--from-image", image)
    (entry,) = cached(on)
    assert set(lvs(GROUP)) == {"volctl", on.lv("a"), f"image-{entry['id']}"}
    assert [volume["name"] for volume in on("list", "--all-projects", "--json").json()] == ["a"]
    for verb in (["show"], ["delete", "-y"], ["attach"]):
        on(verb[0], entry["id"], *verb[1:], status=4)
    used = {line["resource"]: line["in_use"] for line in on("quota", "show", "--json").json()}
    assert (used["volumes"], used["gigabytes"]) == (1, SIZE)
    assert on("backend", "list", "--json").json()[0]["volumes"] == 1
    on("adopt", "fast", f"image-{entry['id']}", status=5)
    assert on("doctor", "--foreign", "--json").json() == []


def test_on_thick_an_image_is_not_copied_twice(warm: Warm, disks: list[Path], image: Path) -> None:
    with volume_group(disks[:2], GROUP):
        warm.configure(GROUP, cached=50, provisioning="thick")
        warm("create", "a", "--from-image", image)
        state = warm("backend", "show", "fast", "--json").json()["image_cache"]
        assert (state["used"], state["images"]) == (False, 0) and "copied twice" in state["reason"]
        assert lvs(GROUP) == [warm.lv("a")]


def removed(lv: str) -> None:
    run("lvremove", "-y", lv)


def cut(lv: str) -> None:
    run("lvreduce", "-y", "-f", "-L", "8m", lv)


def grown(lv: str) -> None:
    run("lvextend", "-y", "-L", "+4m", lv)


def of_somebody(lv: str) -> None:
    run("lvchange", "--deltag", words("vgs", "--noheadings", "-o", "vg_tags", GROUP)[0], lv)


@pytest.mark.parametrize("break_", [removed, cut, grown, of_somebody])
def test_a_broken_one_is_dropped_and_the_volume_made_from_the_file(
    on: Warm, image: Path, raw: Path, break_: Callable[[str], None]
) -> None:
    on("create", "a", "--from-image", image)
    (entry,) = cached(on)
    break_(f"{GROUP}/image-{entry['id']}")
    said = on("create", "b", "--from-image", image, "--size", "20M")
    assert entry["id"] in said.err
    assert entry["id"] not in [left["id"] for left in cached(on) if left["status"] == "available"]
    on("create", "c", "--from-image", image)
    assert [left["status"] for left in cached(on)].count("available") == 1
    assert hold(on, raw, "b", "c")
    assert (f"image-{entry['id']}" in lvs(GROUP)) == (break_ is of_somebody)


def test_of_many_at_once_one_converts_and_all_are_clones(on: Warm, image: Path, raw: Path) -> None:
    names = [f"v{number}" for number in range(MANY)]
    orders = [("create", name, "--from-image", image, "--timeout", "600", "--lock-timeout", "0") for name in names]
    ended = [on.join(pid) for pid in [on.start(*order, programs=True) for order in orders]]
    assert [done.err for done in ended if done.status] == []
    assert sum(converted(done.points) for done in ended) == 1
    (entry,) = cached(on)
    origins = words("lvs", "--noheadings", "-o", "origin", "-S", "lv_name=~^volume", GROUP)
    assert origins == [f"image-{entry['id']}"] * MANY
    assert hold(on, raw, names[0], names[-1])
    assert lvs(GROUP, "lv_active=active && lv_name!=volctl") == []

"""The image cache beside the create: filled once, kept in its limits, and never what a create fails of."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.crash import Ended, MiB, Rig
from tests.flows.test_backend_fails import wait_for
from tests.flows.test_every_task import Point, fail, points

Json = dict[str, Any]


def create(rig: Rig, name: str = "v", *words: str, status: int = 0) -> Ended:
    return rig.run("create", name, "--from-image", rig.qcow2, *words, status=status)


def check(rig: Rig, *names: str, stuck: tuple[str, ...] = ()) -> list[str]:
    """The oracle, where these volumes read as the image, and whatever is cached."""
    names = (*names, *(row["location"] for row in rig.cached()))
    return rig.check(*stuck, **dict.fromkeys(names, rig.contents["image"]))


def calls(rig: Rig, call: str) -> list[list[str]]:
    """The objects of each such call of pool a."""
    lines = (rig.pools["a"] / "calls").read_text().splitlines()
    return [told["objects"] for told in map(json.loads, lines) if told["call"] == call]


def object_of(rig: Rig, entry: Json) -> Path:
    return rig.pools[entry["backend"]] / f"image-{entry['id']}"


def another(rig: Rig, tmp_path: Path, number: int) -> str:
    """A copy of the image: another file, so other content for all that anybody knows."""
    return str(shutil.copy(rig.qcow2, tmp_path / f"{number}.qcow2"))


def test_the_second_volume_is_cloned_and_no_program_runs(caching: Rig) -> None:
    first = create(caching, "v", "-v")
    second = create(caching, "w", "--size", "5M", "-v")
    assert first.err.count("+ qemu-img") == 3 and "+ qemu-img" not in second.err
    (entry,) = caching.cached()
    made = [[f"image-{entry['id']}", f"volume-{caching.there(name)['id']}"] for name in "vw"]
    assert calls(caching, "clone")[-2:] == made
    assert (entry["backend"], entry["size"], entry["key"]) == ("a", MiB, entry["identity"])
    assert entry["used_at"] > entry["created_at"]
    assert check(caching, "v", "w") == []


def test_nobody_is_charged_and_no_list_of_volumes_shows_it(caching: Rig) -> None:
    before = caching.run("quota", "show", "--json").json()
    create(caching, "v")
    after = caching.run("quota", "show", "--json").json()
    used = {line["resource"]: line["in_use"] for line in after}
    more = {line["resource"]: used[line["resource"]] - line["in_use"] for line in before}
    assert (more["volumes"], more["gigabytes"]) == (1, MiB)
    assert len(caching.run("list", "--json", "--all-projects").json()) == 3
    state = next(state for state in caching.run("backend", "list", "--json").json() if state["name"] == "a")
    assert (state["volumes"], state["provisioned"]) == (3, 2 * MiB + MiB + MiB + MiB)
    assert caching.run("show", caching.cached()[0]["id"]).status == 4


def test_where_clones_are_copies_nothing_is_cached(rig: Rig) -> None:
    create(rig, "v")
    assert rig.cached() == []
    told = rig.run("backend", "show", "a", "--json").json()["image_cache"]
    assert not told["used"] and "copied twice" in told["reason"]


@pytest.mark.parametrize("limit", ["max_count = 0", "max_gigabytes = 0"])
def test_a_limit_of_nothing_turns_it_off(caching: Rig, limit: str) -> None:
    caching.configure(f"[image_cache]\n{limit}\n")
    create(caching, "v")
    assert caching.cached() == []
    told = caching.run("backend", "show", "a", "--json").json()["image_cache"]
    assert not told["used"] and "off" in told["reason"]
    assert check(caching, "v") == []


def test_content_that_is_known_by_its_sha256_is_found_in_another_file(caching: Rig, tmp_path: Path) -> None:

    digest = hashlib.sha256(Path(caching.qcow2).read_bytes()).hexdigest()
    create(caching, "v", "--checksum", f"sha256:{digest}")
    (entry,) = caching.cached()
    assert entry["key"] == f"sha256:{digest}"
    copy = another(caching, tmp_path, 1)
    caching.run("create", "w", "--from-image", copy, "--checksum", f"sha256:{digest}", status=0)
    create(caching, "x")  # the same file, nobody asks for its sha256
    assert len(caching.cached()) == 1 and len(calls(caching, "writing")) == 1
    create(caching, "y", "--checksum", f"sha256:{'0' * 64}", status=7)
    assert check(caching, "v", "w", "x") == []


def test_an_image_that_changed_is_looked_at_and_cached_anew(caching: Rig, tmp_path: Path) -> None:
    image = another(caching, tmp_path, 1)
    caching.run("create", "v", "--from-image", image, status=0)
    with open(image, "ab") as file:
        file.write(bytes(512))
    caching.run("create", "w", "--from-image", image, status=0)
    assert len(caching.cached()) == 2
    Path(image).write_bytes(b"QFI\xfb broken")
    caching.run("create", "x", "--from-image", image, status=7)
    assert check(caching, "v", "w") == []
    pruned = caching.run("image", "cache", "prune", "--json", status=0).json()
    assert len(pruned) == 2 and caching.cached() == []
    assert check(caching, "v", "w") == []


def test_of_twenty_at_once_one_fills_and_the_others_clone(caching: Rig) -> None:
    caching.order("a", written={"pause": 1})
    pids = [
        caching.start("create", f"v{number}", "--from-image", caching.qcow2, "-v", "--lock-timeout", "0")
        for number in range(20)
    ]
    ended = [caching.join(pid) for pid in pids]
    assert [done.err for done in ended if done.status] == []
    assert sum(done.err.count("+ qemu-img convert") for done in ended) == 1
    assert len(caching.cached()) == 1 and len(calls(caching, "clone")) >= 20
    assert check(caching, *(f"v{number}" for number in range(20))) == []


def test_creates_and_prunes_at_once_get_along(caching: Rig) -> None:
    names = [f"v{number}" for number in range(6)]
    pids = []
    for name in names:
        pids.append(caching.start("create", name, "--from-image", caching.qcow2))
        pids.append(caching.start("image", "cache", "prune", "--all"))
    ended = [caching.join(pid) for pid in pids]
    assert [(done.status, done.err) for done in ended if done.status or done.err] == []
    assert check(caching, *names) == []


def test_who_waits_gives_up_at_its_timeout_and_not_before(caching: Rig) -> None:
    caching.order("a", written={"wait": str(caching.root / "go"), "times": 1})
    first = caching.start("create", "v", "--from-image", caching.qcow2)
    wait_for(lambda: bool(calls(caching, "written")))
    create(caching, "w", "--timeout", "300ms", "--lock-timeout", "0", status=124)
    (caching.root / "go").touch()
    assert caching.join(first).status == 0
    assert caching.volume("w") is None
    assert check(caching, "v") == []


def test_who_waits_for_one_that_dies_settles_it_and_fills(caching: Rig) -> None:
    caching.order("a", written={"pause": 600, "times": 1})
    first = caching.start("create", "v", "--from-image", caching.qcow2)
    wait_for(lambda: bool(calls(caching, "written")))
    (begun,) = caching.cached()
    second = caching.start("create", "w", "--from-image", caching.qcow2)
    wait_for(lambda: bool(caching.volume("w")))
    os.kill(first, 9)
    assert caching.join(second).status == 0
    caching.join(first)
    (entry,) = caching.cached()
    assert entry["id"] != begun["id"] and entry["status"] == "available"
    assert check(caching, "w") == []
    assert caching.fault("v")[0] == "cancelled"


@pytest.mark.parametrize("how", ["gone", "cut", "larger"])
def test_a_broken_entry_is_dropped_and_the_volume_made_from_the_file(caching: Rig, how: str) -> None:
    create(caching, "v")
    (entry,) = caching.cached()
    if how == "gone":
        object_of(caching, entry).unlink()
    else:
        os.truncate(object_of(caching, entry), MiB // 2 if how == "cut" else 2 * MiB)
    done = create(caching, "w")
    assert "cache" in done.err and entry["id"] in done.err
    assert caching.cached() == []
    create(caching, "x")
    assert len(caching.cached()) == 1
    assert check(caching, "v", "w", "x") == []


@pytest.mark.parametrize("call", ["writing", "written", "inspect", "clone"])
@pytest.mark.parametrize("error", ["backend", "no_space", "permission"])
def test_what_fails_in_the_cache_does_not_fail_the_create(caching: Rig, call: str, error: str) -> None:
    caching.order("a", **{call: {"error": error, "message": "no such luck", "times": 1}})
    done = create(caching, "v")
    assert "no such luck" in done.err
    assert caching.there("v")["backend"] == "a" and caching.there("v")["attempts"] == []
    assert check(caching, "v") == []


def test_a_fault_of_the_image_is_a_fault_of_the_image(caching: Rig, tmp_path: Path) -> None:
    image = another(caching, tmp_path, 1)
    caching.order("a", writing={"wait": str(tmp_path / "changed"), "times": 1})
    pid = caching.start("create", "v", "--from-image", image, "--json")
    wait_for(lambda: bool(calls(caching, "writing")))
    os.utime(image)
    (tmp_path / "changed").touch()
    done = caching.join(pid)
    assert done.status == 7 and caching.fault("v")[0] == "image_unsafe"
    assert len(calls(caching, "writing")) == 1 and caching.cached() == []
    assert check(caching) == []


def test_the_least_recently_used_goes_first(caching: Rig, tmp_path: Path) -> None:
    caching.configure("[image_cache]\nmax_count = 2\n")
    images = [another(caching, tmp_path, number) for number in range(3)]
    for number in (0, 1, 0, 2):
        caching.run("create", "--from-image", images[number], "-q", status=0)
    assert [row["location"] for row in caching.cached()] == [images[0], images[2]]
    assert check(caching, *(row["id"] for row in oracle.load(caching.state)["volumes"][2:])) == []


def test_what_is_larger_than_the_cache_is_not_cached(caching: Rig, tmp_path: Path) -> None:
    caching.configure("[image_cache]\nmax_gigabytes = 1\n")
    image = tmp_path / "large.vhd"
    large = tmp_path / "large.raw"
    large.touch()
    os.truncate(large, (1 << 30) + MiB)
    os.system(f"qemu-img convert -f raw -O qcow2 {large} {image}")
    caching.run("create", "v", "--from-image", str(image), status=0)
    assert caching.cached() == []


def test_an_entry_in_use_is_not_evicted(caching: Rig, tmp_path: Path) -> None:
    caching.configure("[image_cache]\nmax_count = 1\n")
    create(caching, "v")
    caching.order("a", clone={"wait": str(tmp_path / "go"), "times": 1})
    pid = caching.start("create", "w", "--from-image", caching.qcow2)
    wait_for(lambda: len(calls(caching, "clone")) == 2)
    caching.run("create", "x", "--from-image", another(caching, tmp_path, 1), status=0)
    assert caching.run("image", "cache", "prune", "--all", "--json", status=0).json() == []
    (tmp_path / "go").touch()
    assert caching.join(pid).status == 0
    (entry,) = caching.cached()
    assert entry["location"] == caching.qcow2
    assert check(caching, "v", "w", "x") == []


def small(rig: Rig, capacity: int, ratio: float) -> None:
    """Pool a has so many bytes and that ratio from now on."""
    text = (rig.root / "config.toml").read_text()
    limits = f"capacity = {capacity}\nmax_over_subscription_ratio = {ratio}\n"
    (rig.root / "config.toml").write_text(text.replace(f"capacity = {1024**4}\n", limits, 1))


def test_room_is_made_for_a_volume_before_it_is_refused(caching: Rig) -> None:
    """5 MiB are provisioned with the cached image; 10 may be."""
    create(caching, "v")
    small(caching, 100 * MiB, 0.1)
    caching.run("create", "far-too-large", "--size", "9M", "--backend", "a", status=6)
    assert len(caching.cached()) == 1, "it would not have helped"
    planned = caching.run("create", "w", "--size", "6M", "--backend", "a", "--dry-run", "--json", status=0)
    assert planned.json()["chosen"] == "a" and len(caching.cached()) == 1
    caching.run("create", "w", "--size", "6M", "--backend", "a", status=0)
    assert caching.cached() == []
    assert check(caching, "v") == []


def test_an_image_that_is_held_needs_no_room_for_its_data(caching: Rig) -> None:
    create(caching, "v")
    (caching.pools["a"] / "stats").write_text('{"free": 65536}')
    create(caching, "w", "--backend", "a")
    assert caching.there("w")["promised"] == 0 and len(caching.cached()) == 1
    caching.run("image", "cache", "prune", "--all", status=0)
    create(caching, "x", "--backend", "a", status=6)
    assert check(caching, "v", "w") == []


def test_a_full_disk_is_freed_of_cached_images_first(caching: Rig) -> None:
    create(caching, "v")
    caching.order("a", create={"error": "no_space", "message": "full", "times": 1})
    caching.run("create", "w", "--size", "1M", "--backend", "a", status=0)
    assert caching.cached() == []
    caching.order("a", create={"error": "no_space", "message": "full", "times": 1})
    caching.run("create", "x", "--size", "1M", "--backend", "a", "--max-attempts", "1", status=6)
    assert check(caching, "v") == []


def test_prune_takes_what_is_asked(caching: Rig) -> None:
    create(caching, "v")
    assert caching.run("image", "cache", "prune", "--json", status=0).json() == []
    caching.run("image", "cache", "prune", "--backend", "nope", status=4)
    assert caching.run("image", "cache", "prune", "--all", "--backend", "b", "--json", status=0).json() == []
    listed = caching.run("image", "cache", "list", "--json", status=0).json()
    assert [row["id"] for row in listed] == [row["id"] for row in caching.cached()]
    assert caching.run("image", "cache", "prune", "--all", "--json", status=0).json() == listed
    assert caching.run("image", "cache", "list", "--json", status=0).json() == []
    assert check(caching, "v") == []


def test_prune_keeps_to_limits_that_were_lowered(caching: Rig, tmp_path: Path) -> None:
    for number in range(3):
        caching.run("create", "--from-image", another(caching, tmp_path, number), "-q", status=0)
    caching.configure("[image_cache]\nmax_count = 1\n")
    assert len(caching.run("image", "cache", "prune", "--json", status=0).json()) == 2
    assert [row["location"] for row in caching.cached()] == [str(tmp_path / "2.qcow2")]


def test_an_eviction_that_cannot_be_done_is_stuck_and_tried_again(caching: Rig) -> None:
    create(caching, "v")
    (entry,) = caching.cached()
    caching.order("a", delete="no such luck")
    done = caching.run("image", "cache", "prune", "--all", "--json", status=3)
    assert done.json() == [] and "no such luck" in done.err
    assert check(caching, "v", stuck=(entry["id"],)) == []
    create(caching, "w")  # filled anew: what is stuck is not used
    caching.order("a")
    caching.run("flow", "retry", caching.stuck()["id"], status=0)
    assert [row["id"] == entry["id"] for row in caching.cached()] == [False]
    assert check(caching, "v", "w") == []


def test_a_fill_that_cannot_be_undone_is_stuck_and_tried_again(caching: Rig) -> None:
    caching.order("a", written="broken", delete={"message": "nor that", "times": 1})
    create(caching, "v", "--max-attempts", "1", status=8)
    assert caching.cached() == []
    assert caching.stuck()["name"] == "image_cache_fill"
    caching.order("a")
    caching.run("flow", "retry", caching.stuck()["id"], status=0)
    assert check(caching) == []


def test_an_abandoned_eviction_is_pruned(caching: Rig) -> None:
    create(caching, "v")
    caching.order("a", delete="no such luck")
    told = caching.run("image", "cache", "prune", "--all", "--json", status=3)
    assert told.json() == [] and "no such luck" in told.err and "1 of 1 cached images" in told.err
    caching.run("flow", "abandon", caching.stuck()["id"], "-y", status=0)
    (entry,) = caching.cached()
    assert entry["status"] == "error"
    caching.order("a")
    caching.run("image", "cache", "prune", status=0)
    assert caching.cached() == [] and check(caching, "v") == []


def test_deleting_a_copied_image_lets_go_of_what_was_cached_of_it(caching: Rig) -> None:
    caching.run("image", "add", "mine", caching.qcow2, "--copy", status=0)
    caching.run("image", "add", "theirs", caching.qcow2, status=0)
    for name in ("mine", "theirs"):
        caching.run("create", f"from-{name}", "--from-image", name, status=0)
    assert len(caching.cached()) == 2
    for name in ("mine", "theirs"):
        caching.run("image", "delete", name, status=0)
    assert [row["location"] for row in caching.cached()] == [caching.qcow2]
    assert check(caching, "from-mine", "from-theirs") == []


def test_refreshing_an_image_lets_go_of_what_it_was(caching: Rig, tmp_path: Path) -> None:
    image = another(caching, tmp_path, 1)
    caching.run("image", "add", "i", image, status=0)
    caching.run("create", "v", "--from-image", "i", status=0)
    os.utime(image)
    caching.run("create", "w", "--from-image", "i", status=7)
    caching.run("image", "refresh", "i", status=0)
    assert caching.cached() == []
    caching.run("create", "w", "--from-image", "i", status=0)
    assert len(caching.cached()) == 1
    assert check(caching, "v", "w") == []


@pytest.mark.parametrize("point", points("image_cache_fill"), ids="-".join)
@pytest.mark.parametrize(("error", "status"), [("backend", 0), ("RuntimeError", 1)])
def test_a_fill_that_fails_in_a_task_leaves_nothing(caching: Rig, point: Point, error: str, status: int) -> None:
    words = ("create", "v", "--from-image", caching.qcow2, "--max-attempts", "1")
    done = caching.run(*words, inject=fail(*point, error), status=status)
    assert "injected" in done.err and "Traceback" not in done.err
    assert caching.cached() == []
    assert caching.there("v")["status"] == ("error" if status else "available")
    assert check(caching, "v") == []


@pytest.mark.parametrize("point", points("image_cache_evict"), ids="-".join)
def test_an_eviction_that_fails_in_a_task_is_undone_or_completed(caching: Rig, point: Point) -> None:
    create(caching, "v")
    (entry,) = caching.cached()
    caching.run("image", "cache", "prune", "--all", inject=fail(*point, "backend"), status=3)
    open_flows = [row for row in caching.flows(object_id=entry["id"]) if row["ended_at"] is None]
    assert check(caching, "v", stuck=(entry["id"],) if open_flows else ()) == []
    if open_flows:
        caching.run("flow", "retry", open_flows[0]["id"], status=0)
    assert bool(caching.cached()) != bool(open_flows)
    assert check(caching, "v") == []


def test_doctor_knows_what_is_cached(caching: Rig) -> None:
    create(caching, "v")
    assert caching.run("doctor", "--json", status=0).json() == []
    (entry,) = caching.cached()
    object_of(caching, entry).unlink()
    stranger = caching.pools["a"] / f"image-{uuid.uuid4()}"
    stranger.write_bytes(b"nobody's")
    found = caching.run("doctor", "--json", status=12).json()
    assert {(line["kind"], line["object"]) for line in found} == {
        ("cached_image", f"image-{entry['id']}"),
        ("orphan", stranger.name),
    }
    caching.run("doctor", "--fix", "-y", status=0)
    assert caching.cached() == [] and not stranger.exists()
    assert check(caching, "v") == []


def test_a_packed_image_is_unpacked_once(caching: Rig, tmp_path: Path) -> None:
    source = caching.contents["image"].source
    assert source is not None
    packed = tmp_path / "disk.raw.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    for name in "vw":
        caching.run("create", name, "--from-image", str(packed), status=0)
    (entry,) = caching.cached()
    assert (entry["format"], entry["packed"]) == ("raw", "gzip")
    assert len(calls(caching, "writing")) == 1 and len(calls(caching, "clone")) >= 2
    assert check(caching, "v", "w") == []


def test_the_checksum_of_a_packed_image_is_not_that_of_the_file_which_is_kept(caching: Rig, tmp_path: Path) -> None:
    packed = tmp_path / "disk.qcow2.gz"
    packed.write_bytes(gzip.compress(Path(caching.qcow2).read_bytes()))
    checksum = f"sha256:{hashlib.sha256(packed.read_bytes()).hexdigest()}"
    kept = caching.run("image", "add", "i", str(packed), "--checksum", checksum, "--json", status=0).json()["location"]
    caching.run("create", "v", "--from-image", "i", "--checksum", checksum, status=0)
    caching.run("create", "w", "--from-image", kept, "--checksum", checksum, status=7)
    caching.run("create", "x", "--from-image", kept, status=0)
    assert len(caching.cached()) == 1
    assert check(caching, "v", "x") == []


def test_a_signal_while_the_cache_lets_go_is_no_failure_of_the_deletion(caching: Rig) -> None:
    """The image is gone by then; what is cached of it goes with the next prune."""
    caching.run(*caching.words("image add i QCOW2 --copy"), status=0)
    caching.run("create", "v", "--from-image", "i", status=0)
    caching.order("a", delete={"pause": 600})
    before = len(calls(caching, "delete"))
    pid = caching.start("image", "delete", "i", "-y")
    wait_for(lambda: len(calls(caching, "delete")) > before)
    os.kill(pid, signal.SIGINT)
    ended = caching.join(pid)
    assert ended.status == 0 and "prune" in ended.err
    caching.order("a")
    assert "i" not in [image["name"] for image in caching.run("image", "list", "--json").json()]
    assert check(caching, "v") == []

"""An error at every task of every flow, in each of its halves: afterwards all is as SPEC says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.crash import Ended, Rig
from volctl.engine.task import Task
from volctl.flows import FLOWS

Json = dict[str, Any]
CREATE = ("volume_create_api", "volume_create_scheduler", "volume_create_manager")
OTHERS = {
    "volume_delete": "delete bystander -y",
    "volume_extend": "extend src 5M",
    "snapshot_create": "snapshot create src s",
    "snapshot_delete": "snapshot delete snap -y",
    "volume_revert": "revert src snap -y",
    "volume_attach": "attach src",
    "volume_detach": "detach src",
    "image_add": "image add i IMAGE --copy",
    "image_fetch": "image add i URL",
    "image_save": "image save src SAVED",
    "image_delete": "image delete registered -y",
    "image_replace": "image refresh fetched",
    "volume_adopt": "adopt a thing.raw v",
    "volume_release": "release bystander",
    "orphan_delete": "doctor --fix -y",
}
ELSEWHERE = ("image_cache_fill", "image_cache_evict", "device_detach", "device_resume")  # test_image_cache, test_doctor
ORPHAN = "volume-00000000-0000-4000-8000-000000000000"
BEFORE_STORAGE = ("ExtractVolumeRefTask", "OnFailureRescheduleTask", "ExtractVolumeSpecTask", "NotifyVolumeActionTask")


Point = tuple[str, str, str, str]
"""flow, task, half, when"""


ON_QCOW2 = (
    *("volume_delete", "volume_extend", "snapshot_create", "snapshot_delete", "volume_revert", "image_save"),
    *("volume_adopt", "volume_release", "orphan_delete"),
)


def outside(*names: str) -> list[Point]:
    """Every place where work on the backend may fail."""
    return [point for point in points(*names) if point[2] == "execute"]


def points(*names: str) -> list[Point]:
    """Every place where a task may fail."""
    return [point for name in names for task in FLOWS[name].tasks for point in _of(name, task)]


def _of(flow: str, task: Task[Any, Any]) -> Iterator[Point]:
    for half in ("gather", "execute", "record") if task.effects else ("gather", "record"):
        for when in ("before", "after"):
            yield flow, task.name, half, when


def fail(flow: str, task: str, half: str, when: str, error: str) -> list[Json]:
    return [{"flow": flow, "task": task, "half": half, "when": when, "error": error}]


@pytest.fixture
def qcow2(qcow2_world: Rig) -> Iterator[Rig]:
    with qcow2_world.copy() as copied:
        yield copied


@pytest.mark.parametrize("point", points(*CREATE), ids="-".join)
@pytest.mark.parametrize(("error", "code", "status"), [("backend", "backend", 8), ("RuntimeError", "internal", 1)])
def test_a_create_that_fails_in_a_task_leaves_what_spec_says(
    rig: Rig, point: Point, error: str, code: str, status: int
) -> None:
    create_fails(rig, point, error, code, status)


@pytest.mark.parametrize("point", outside(*CREATE), ids="-".join)
@pytest.mark.parametrize("words", ["--size 3M", "--from-volume src", "--from-snapshot snap", "--from-image QCOW2"])
def test_the_same_on_qcow2(qcow2: Rig, point: Point, words: str) -> None:
    create_fails(qcow2, point, "backend", "backend", 8, words)


def create_fails(rig: Rig, point: Point, error: str, code: str, status: int, words: str = "--size 3M") -> None:
    before = {pool: rig.held(pool) for pool in rig.pools}
    done = rig.run("create", "v", *rig.words(words), "--json", status=status, inject=fail(*point, error))
    assert "injected" in done.err and "Traceback" not in done.err
    assert {pool: rig.held(pool) for pool in rig.pools} == before
    assert rig.check() == []
    flow, task, half, _ = point
    if flow == "volume_create_api":
        assert rig.volume("v") is None
        return
    assert rig.fault("v")[0] == code
    began = flow == "volume_create_manager" and task not in BEFORE_STORAGE
    began = began and (task, half) != ("CreateVolumeFromSpecTask", "gather")
    elsewhere = error == "backend" and not words.startswith(("--from-volume", "--from-snapshot"))
    tried = (["a", "b"] if elsewhere else ["a"]) if began else []
    assert sorted(attempt["backend"] for attempt in rig.there("v")["attempts"]) == tried
    _has_its_events(rig, began=began)


def _has_its_events(rig: Rig, *, began: bool) -> None:
    volume = rig.there("v")["id"]
    kinds = [event["type"] for event in oracle.load(rig.state)["events"] if event["object"] == volume]
    assert kinds[0] == "volume.status" and kinds[-1] == "create.error"
    assert ("create.start" in kinds) == began
    assert "create.end" not in kinds


@pytest.mark.parametrize("point", points(*OTHERS), ids="-".join)
def test_another_verb_that_fails_in_a_task_is_undone_or_stuck_and_then_completed(rig: Rig, point: Point) -> None:
    """Never anything between; whether the flow is stuck or not, the outcome is one of the two."""
    another_verb_fails(rig, point)


@pytest.mark.parametrize("point", outside(*ON_QCOW2), ids="-".join)
def test_another_verb_on_qcow2(qcow2: Rig, point: Point) -> None:
    another_verb_fails(qcow2, point)


def another_verb_fails(rig: Rig, point: Point) -> None:
    flow = point[0]
    _prepare(rig, flow)
    before = oracle.load(rig.state)
    done = rig.run(*_words(rig, flow), inject=fail(*point, "RuntimeError"), status=1)
    assert "injected" in done.err
    objects = [row["object_id"] for row in rig.flows() if row["ended_at"] is None]
    rig.mark_foreign()  # what was released, or not adopted
    assert [line for line in rig.check(*objects, src=_src(rig)) if ORPHAN not in line] == []
    for row in rig.flows():
        if row["ended_at"] is None:
            assert row["phase"] == "stuck"
            rig.run("flow", "retry", row["id"], status=0)
            assert _outcome(rig, flow, before), "it was completed"
            rig.mark_foreign()
            return assert_clean(rig)
    assert _outcome(rig, flow, before) == bool(objects), (
        "it was undone, or stuck and its pause over by the next command"
    )
    if flow == "orphan_delete":
        rig.run(*_words(rig, flow), status=0)
    return assert_clean(rig)


def assert_clean(rig: Rig) -> None:
    assert rig.check(src=_src(rig)) == []


def _prepare(rig: Rig, flow: str) -> None:
    if flow == "volume_detach":
        rig.run("attach", "src", status=0)
    if flow == "volume_adopt":
        _put(rig, "thing.raw")
    if flow == "orphan_delete":
        _put(rig, ORPHAN)
    if flow == "image_replace":
        rig.run("image", "add", "fetched", rig.page, status=0)
        os.utime(_fetched(rig)[0])


def _put(rig: Rig, name: str) -> None:
    """Something of the backend's kind into a pool, by hand."""
    path = rig.pools["a"] / name
    if rig.kind == "qcow2":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    else:
        path.write_bytes(bytes(1024**2))


def _fetched(rig: Rig) -> tuple[Path, Json]:
    """The file of the image that was fetched, and what it was when it was checked."""
    (row,) = [row for row in oracle.load(rig.state)["images"] if row["name"] == "fetched"]
    return Path(row["location"]), row["identity"]


def _words(rig: Rig, flow: str) -> list[str]:
    source = rig.contents["image"].source
    places = {"IMAGE": source, "SAVED": rig.root / "saved", "URL": rig.page}
    return [str(places.get(word, word)) for word in OTHERS[flow].split()]


def _src(rig: Rig) -> oracle.Content:
    """`src` reads as its snapshot if it was reverted; one in `error` is not looked at."""
    reverted = rig.differs("src", rig.contents["then"]) is None
    return rig.contents["then" if reverted else "src"]


def _outcome(rig: Rig, flow: str, before: dict[str, list[Json]]) -> bool:
    """Was it done?"""
    after = oracle.load(rig.state)
    if flow == "volume_revert":
        return rig.differs("src", rig.contents["then"]) is None
    kinds = dict.fromkeys(("volume_delete", "volume_adopt", "volume_release"), "volumes")
    kinds |= {"snapshot_create": "snapshots", "snapshot_delete": "snapshots"}
    if flow == "volume_extend":
        return bool(rig.there("src")["size"] == 5 * 1024**2)
    if flow == "image_save":
        assert not [name for name in os.listdir(rig.root) if name.startswith(".volctl")]
        return (rig.root / "saved").exists()
    if flow == "image_replace":
        path, identity = _fetched(rig)
        return bool(path.stat().st_mtime_ns == identity["mtime_ns"])
    if flow == "orphan_delete":
        return not (rig.pools["a"] / ORPHAN).exists()
    if flow in ("volume_attach", "volume_detach"):
        return bool(rig.there("src")["status"] == ("in-use" if flow == "volume_attach" else "available"))
    kind = kinds.get(flow, "images")
    good = [row for row in after[kind] if row["status"] == "available"]
    return len(good) != len(before[kind])


def test_no_task_of_the_three_flows_is_left_out() -> None:
    assert len({task for _, task, *_ in points(*CREATE)}) == 13
    assert set(CREATE) | set(OTHERS) | set(ELSEWHERE) == set(FLOWS)


def told(done: Ended) -> Json:
    """The JSON line of an error."""
    error: Json = json.loads(done.err.splitlines()[-1])["error"]
    return error

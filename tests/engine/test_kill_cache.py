"""kill -9 at every instant of a create from an image where images are cached, and of a prune."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.crash import Ended, Rig, Zygote, furnished
from tests.engine.test_kill_matrix import Case, kill_everywhere, made, settle_killed_everywhere

CREATE = "create v --from-image QCOW2 --size 3M --backend a"


def filled(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """The volume as ever; the cached image stays if its flow was done, whatever became of the volume."""
    number = len(rig.cached())
    wanted = 1 if done(died, "FillCacheTask") else 0
    return made(rig, died, whole) or (None if number == wanted else f"{number} images are cached, not {wanted}")


def cloned(rig: Rig, died: Ended, whole: Ended) -> str | None:
    return made(rig, died, whole) or (None if len(rig.cached()) == 1 else f"cached are {rig.cached()}")


def exchanged(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """The old one goes when its eviction has begun, the new one is there when its fill is done."""
    evicted = begun(died, whole, "DeleteCachedImageTask")
    wanted = ([] if evicted else ["disk.raw"]) + (["disk.qcow2"] if done(died, "FillCacheTask") else [])
    there = [row["location"].rpartition("/")[2] for row in rig.cached()]
    return made(rig, died, whole) or (None if there == wanted else f"cached are {there}, not {wanted}")


def dropped(rig: Rig, died: Ended, whole: Ended) -> str | None:
    """A cached image that is broken goes; the volume is made from the file."""
    there = bool(rig.cached())
    if there == begun(died, whole, "DeleteCachedImageTask"):
        return f"the broken image is there: {there}"
    return made(rig, died, whole)


def pruned(rig: Rig, died: Ended, whole: Ended) -> str | None:
    there = bool(rig.cached())
    return None if there == (died.commits == 0) else f"after {died.commits} commits the cached image is there: {there}"


def done(died: Ended, task: str) -> bool:
    """Was the transaction after this task's outside work committed?"""
    after = f"after {task}"
    return after in died.points and "after commit" in died.points[died.points.index(after) :]


def begun(died: Ended, whole: Ended, task: str) -> bool:
    """Was the transaction before this task's outside work committed?"""
    return len(died.points) >= whole.points.index(f"before {task}")


def is_cached(rig: Rig) -> None:
    rig.run("create", "w", "--from-image", rig.qcow2, "--backend", "a", status=0)


def another_is_cached(rig: Rig) -> None:
    """One image fills the cache."""
    rig.configure("[image_cache]\nmax_count = 1\n")
    rig.run("create", "w", "--from-image", rig.qcow2.replace(".qcow2", ".raw"), "--backend", "a", status=0)


def is_broken(rig: Rig) -> None:
    is_cached(rig)
    (entry,) = rig.cached()
    (rig.pools[entry["backend"]] / f"image-{entry['id']}").unlink()


BOTH = {"v": "image", "w": "image"}
CASES = {
    "fill": Case(CREATE, filled, 30, reads_as={"v": "image"}),
    "clone": Case(CREATE, cloned, 20, is_cached, reads_as=BOTH),
    "evict": Case(CREATE, exchanged, 40, another_is_cached, reads_as=BOTH),
    "broken": Case(CREATE, dropped, 30, is_broken, reads_as=BOTH, ignores="but there is no"),
    "prune": Case("image cache prune --all", pruned, 9, is_cached, reads_as=BOTH),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_point_the_next_command_finds_no_leak(caching_world: Rig, name: str) -> None:
    kill_everywhere(caching_world, CASES[name], f"cache {name}")


@pytest.mark.parametrize(("name", "least"), [("fill", 20), ("evict", 20)])
def test_a_settle_that_is_killed_is_settled_by_the_next(caching_world: Rig, name: str, least: int) -> None:
    settle_killed_everywhere(caching_world, CASES[name], f"cache {name}", least)


@pytest.mark.root
@pytest.mark.parametrize("reflink_mount", ["xfs"], indirect=True)
@pytest.mark.parametrize("name", ["fill", "clone"])
def test_the_same_where_files_share_blocks(zygote: Zygote, reflink_mount: Path, name: str) -> None:
    with furnished(zygote, "loop", place=reflink_mount) as world:
        kill_everywhere(world, CASES[name], f"cache {name} on xfs")

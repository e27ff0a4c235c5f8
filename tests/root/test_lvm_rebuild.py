"""The database is lost and made again from the tags of LVs: random populations on thin and thick.

`VOLCTL_POPULATIONS` says how many (a hundred: with `make test-lvm`). Each begins in an empty group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.populations import UNKNOWN, World, come_back_equal
from tests.root.counted import counted
from tests.root.lvm_rig import lvs, run, volume_group, words
from tests.root.warm import Warm
from tests.sampling import SEED

GROUP = "rebuild-group"
POPULATIONS = int(os.environ.get("VOLCTL_POPULATIONS", "2"))
SEEN = "lv_name,lv_uuid,lv_size,lv_tags,lv_attr,origin,pool_lv,seg_pe_ranges"


@pytest.fixture(scope="module")
def group(disks: list[Path]) -> Iterator[str]:
    with volume_group(disks[:2], GROUP):
        yield GROUP


@pytest.mark.parametrize("number", range(POPULATIONS))
def test_a_random_population_comes_back_equal(number: int, group: str, tmp_path: Path) -> None:
    provisioning = ("thin", "thick")[number % 2]
    sized = {"pool_size": "300M"} if provisioning == "thin" else {}
    world = World(tmp_path / "world", "lvm", volume_group=group, provisioning=provisioning, **sized)
    come_back_equal(world, f"{SEED} lvm {number}", lambda: run("lvs", "-a", "--noheadings", "-o", SEEN, group))
    assert lvs(group, "lv_active=active && lv_name!=volctl") == []
    empty(group)
    counted(f"populations on {provisioning}", 1, 1)


def empty(group: str) -> None:
    """Of LVs and of our mark."""
    if lvs(group):
        run("lvremove", "-y", "-ff", group)
    for mark in words("vgs", "--noheadings", "-o", "vg_tags", group):
        run("vgchange", "--deltag", mark, group)


def test_a_command_finds_the_database_lost_and_doctor_brings_it_back(warm: Warm, group: str) -> None:
    warm.configure(group, provisioning="thick")
    warm("create", "data", "--size", "16M")
    warm("snapshot", "create", "data", "snap")
    warm("create", "other", "--size", "4M")
    warm("attach", "other")
    warm("set", "data", "--name", "renamed", "--property", "later=1")
    known, before = _known(warm), run("lvs", "-a", "--noheadings", "-o", SEEN, group)
    for path in warm.database.parent.glob("volctl.db*"):
        path.unlink()
    assert "doctor --rebuild" in warm("create", "new", "--size", "4M", status=11).err
    told = warm("doctor", "--rebuild", "--yes", "--json").json()
    assert {finding["problem"] for finding in told} == {"made again"}
    assert _known(warm) == known
    assert run("lvs", "-a", "--noheadings", "-o", SEEN, group) == before
    assert warm("doctor", "--json").json() == []
    warm("detach", "other")
    warm("delete", "renamed", "other", "-y", "--cascade")
    assert lvs(group) == []
    empty(group)


def _known(warm: Warm) -> Any:
    """What is told of volumes and snapshots; when one was attached nothing carries."""
    rows = [*warm("list", "--json").json(), *warm("snapshot", "list", "--json").json()]
    for row in rows:
        for attachment in row.get("attachments", ()):
            del attachment["attached_at"]
    return [{key: value for key, value in row.items() if key not in UNKNOWN} for row in rows]

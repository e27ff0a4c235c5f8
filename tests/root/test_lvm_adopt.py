"""An LV of others becomes a volume in place, and a volume an LV of nobody: a name and tags, no byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.root.lvm_rig import lvs, run, volume_group, words
from tests.root.warm import Warm
from volctl.model import MiB

GROUP = "adopt-group"


@pytest.fixture(params=["thin", "thick"])
def on(request: pytest.FixtureRequest, warm: Warm, disks: list[Path]) -> Iterator[Warm]:
    """A prepared group with volume `data`, its snapshot `snap`, and an LV of somebody, thin where there is a pool."""
    with volume_group(disks[:2], GROUP):
        sized: dict[str, Any] = {"pool_size": "200M"} if request.param == "thin" else {}
        warm.configure(GROUP, provisioning=request.param, **sized)
        where = ["-V", "8m", "--thinpool", "volctl"] if sized else ["-L", "8m"]
        run("lvcreate", "-y", "-an", "-Wn", *where, "-n", "somebody", GROUP)
        warm("create", "data", "--size", "16M")
        warm("snapshot", "create", "data", "snap")
        yield warm


def test_an_lv_becomes_a_volume_and_an_lv_again(on: Warm) -> None:
    run("lvchange", "-y", "-ay", f"{GROUP}/somebody")
    Path("/dev", GROUP, "somebody").write_bytes(b"bytes" * 1000)
    run("udevadm", "settle")
    made = on("adopt", "fast", f"/dev/{GROUP}/somebody", "mine", "--json").json()
    assert made["size"] == 8 * MiB
    assert lvs(GROUP, f"lv_name=volume-{made['id']} && lv_active=active") == []
    assert on("doctor", "--json").json() == []
    told = on("release", "mine", "--json").json()
    assert told["path"] == f"/dev/{GROUP}/mine"
    assert words("lvs", "--noheadings", "-o", "lv_tags", f"{GROUP}/mine") == []
    run("lvchange", "-y", "-ay", "-K", f"{GROUP}/mine")
    with Path(told["path"]).open("rb") as file:
        assert file.read(5000) == b"bytes" * 1000
    run("udevadm", "settle")
    run("lvchange", "-y", "-an", f"{GROUP}/mine")
    assert on("doctor", "--json").json() == []


def test_what_is_not_adopted(on: Warm) -> None:
    data = on.lv("data")
    for name, status in ((data, 5), ("nothing", 4), ("/dev/other/lv", 2)):
        ran = on("adopt", "fast", name, "mine", "--json", status=status)
        assert json.loads(ran.err.splitlines()[-1])["error"]["exit"] == status
    if "volctl" in lvs(GROUP):
        on("adopt", "fast", "volctl", "mine", status=2)
    run("lvcreate", "-y", "-s", "-L", "4m", "-n", "theirs", f"{GROUP}/somebody")
    for name in ("theirs", "somebody"):
        on("adopt", "fast", name, "mine", status=2)
    run("lvremove", "-y", f"{GROUP}/theirs")
    assert "somebody" in lvs(GROUP)

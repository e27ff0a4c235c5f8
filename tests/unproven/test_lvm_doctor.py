"""doctor, rebuild, adopt and release on real LVM, through the command line."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.root.lvm_rig import lvs, run, volume_group, words
from tests.root.warm import Warm
from volctl.model import MiB

GROUP = "doctor-group"
UNKNOWN = ("available_at", "updated_at", "attempts")


@pytest.fixture(params=["thin", "thick"])
def on(request: pytest.FixtureRequest, warm: Warm, disks: list[Path]) -> Iterator[Warm]:
    """A prepared group with volume `data`, its snapshot `snap`, and an LV of somebody."""
    with volume_group(disks[:2], GROUP):
        sized = {"pool_size": "200M"} if request.param == "thin" else {}
        warm.configure(GROUP, provisioning=request.param, **sized)
        run("lvcreate", "-y", "-an", "-Wn", "-Zn", "-L", "8m", "-n", "somebody", GROUP)
        warm("create", "data", "--size", "16M", "--property", "role=☂", "--description", "x" * 255)
        warm("snapshot", "create", "data", "snap")
        yield warm


def doctor(on: Warm, *words: str, status: int = 0) -> Any:
    return on("doctor", "--json", *words, status=status).json()


def id_of(on: Warm, name: str) -> str:
    return str(on("show", name, "--json").json()["id"])


def test_a_healthy_group_has_no_difference_and_others_are_foreign(on: Warm) -> None:
    assert doctor(on) == []
    assert "somebody" in [finding["object"] for finding in doctor(on, "--foreign")]


def test_damage_is_named_and_put_right(on: Warm) -> None:
    data = id_of(on, "data")
    mark = words("vgs", "--noheadings", "-o", "vg_tags", GROUP)[0]
    stray = f"volume-{uuid.uuid4()}"
    run("lvcreate", "-y", "-an", "-Wn", "-Zn", "-L", "8m", "-n", stray, "--addtag", mark, "--addtag", "volctl", GROUP)
    run("lvchange", "-y", "-ay", "-K", f"{GROUP}/volume-{data}")
    found = {(finding["kind"], finding["object"]) for finding in doctor(on, status=12)}
    assert found == {("orphan", stray), ("device", f"volume-{data}")}
    assert all(finding["fixed"] for finding in doctor(on, "--fix", "--yes"))
    assert doctor(on) == []
    assert stray not in lvs(GROUP) and "somebody" in lvs(GROUP)
    assert lvs(GROUP, f"lv_name=volume-{data} && lv_active=active") == []


def test_an_lv_that_is_gone(on: Warm) -> None:
    on("snapshot", "delete", "snap", "--yes")
    run("lvremove", "-y", f"{GROUP}/volume-{id_of(on, 'data')}")
    assert [finding["kind"] for finding in doctor(on, status=12)] == ["volume_object"]
    doctor(on, "--fix")
    assert on("show", "data", "--json").json()["fault"]["code"] == "backend"
    assert doctor(on) == []


def test_a_lost_database_comes_back_equal(on: Warm) -> None:
    on("create", "clone", "--from-snapshot", "snap")
    on("set", "data", "--name", "renamed", "--property", "later=1")
    on("protect", "renamed")
    known = [_known(on, verb) for verb in (["list"], ["snapshot", "list"])]
    before = sorted(lvs(GROUP))
    for path in on.database.parent.glob("volctl.db*"):
        path.unlink()
    on("list", status=11)
    told = doctor(on, "--rebuild", "--yes")
    assert {finding["problem"] for finding in told} == {"made again"}
    assert [_known(on, verb) for verb in (["list"], ["snapshot", "list"])] == known
    assert sorted(lvs(GROUP)) == before
    assert doctor(on) == []
    on("unprotect", "renamed")
    on("snapshot", "delete", "snap", "--yes")


def _known(on: Warm, verb: list[str]) -> Any:
    rows = on(*verb, "--json").json()
    return [{key: value for key, value in row.items() if key not in UNKNOWN} for row in rows]


def test_an_lv_becomes_a_volume_and_an_lv_again(on: Warm) -> None:
    run("lvchange", "-y", "-ay", f"{GROUP}/somebody")
    path = Path("/dev", GROUP, "somebody")
    path.write_bytes(b"bytes" * 1000)
    run("udevadm", "settle")
    made = on("adopt", "fast", f"/dev/{GROUP}/somebody", "mine", "--json").json()
    assert made["size"] == 8 * MiB
    assert lvs(GROUP, f"lv_name=volume-{made['id']} && lv_active=active") == []
    assert doctor(on) == []
    told = on("release", "mine", "--json").json()
    assert told["path"] == f"/dev/{GROUP}/mine"
    assert words("lvs", "--noheadings", "-o", "lv_tags", f"{GROUP}/mine") == []
    run("lvchange", "-y", "-ay", f"{GROUP}/mine")
    with Path(told["path"]).open("rb") as file:
        assert file.read(5000) == b"bytes" * 1000
    run("udevadm", "settle")
    run("lvchange", "-y", "-an", f"{GROUP}/mine")
    assert doctor(on) == []


def test_what_is_not_adopted(on: Warm) -> None:
    refused = [f"volume-{id_of(on, 'data')}", "nothing", "/dev/other/lv"]
    for name, status in zip(refused, (5, 4, 2), strict=True):
        ran = on("adopt", "fast", name, "mine", "--json", status=status)
        assert json.loads(ran.err.splitlines()[-1])["error"]["exit"] == status
    if "volctl" in lvs(GROUP):
        on("adopt", "fast", "volctl", "mine", status=2)
    run("lvcreate", "-y", "-s", "-L", "4m", "-n", "theirs", f"{GROUP}/somebody")
    for name in ("theirs", "somebody"):
        on("adopt", "fast", name, "mine", status=2)
    run("lvremove", "-y", f"{GROUP}/theirs")
    assert "somebody" in lvs(GROUP)

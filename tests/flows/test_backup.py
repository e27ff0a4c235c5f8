"""A backup that was made while commands ran is put back when they have long ended: nothing of theirs is undone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests import oracle
from tests.engine.crash import MiB, Rig
from tests.flows.test_interrupt import wait_for


def saved_while(rig: Rig, copy: Path, *argv: str, call: str) -> None:
    """A backup from the middle of a command's call of its backend; the command then ends well."""
    saved = copy.with_name("saved")
    rig.order("a", **{call: {"wait": str(saved)}})
    calls = rig.pools["a"] / "calls"
    before = calls.read_text()
    pid = rig.start(*argv)
    wait_for(lambda: f'"{call}"' in calls.read_text()[len(before) :])
    rig.run("backup-db", str(copy), status=0)
    saved.touch()
    assert rig.join(pid).status == 0
    rig.order("a")


def put_back(rig: Rig, copy: Path) -> None:
    for path in rig.state.glob("volctl.db*"):
        path.unlink()
    shutil.copy(copy, rig.state / "volctl.db")


@pytest.mark.parametrize("half", [False, True])
def test_a_volume_that_was_being_made_is_not_deleted(half: bool, rig: Rig, tmp_path: Path) -> None:
    """It is available again if it is whole; else nobody knows, and its row stays as it is."""
    saved_while(rig, tmp_path / "copy", "create", "v", "--size", "3M", "--backend", "a", call="create")
    made = rig.pools["a"] / f"volume-{rig.there('v')['id']}"
    with made.open("r+b") as file:
        file.write(b"precious")
    put_back(rig, tmp_path / "copy")
    assert "settled" not in rig.run("list", status=0).err
    row = rig.there("v")
    assert row["status"] == "error" and "backup" in row["fault"]["message"]
    if half:
        os.removexattr(made, "user.volctl")
        rig.run("doctor", "--fix", "-y", status=0)
        assert rig.there("v")["status"] == "error"
    else:
        rig.run("doctor", "--fix", "-y", status=0)
        assert (rig.there("v")["status"], rig.there("v")["fault"]) == ("available", None)
    assert made.read_bytes().startswith(b"precious")
    assert rig.flows(ended_at=None) == []  # type: ignore[arg-type]
    use = rig.run("quota", "show", "--json", status=0).json()
    assert all(line["reserved"] == 0 for line in use), use
    rig.run("delete", "v", "-y", status=0)
    assert rig.check() == [] and not made.exists()


@pytest.mark.parametrize(
    ("call", "line"), [("revert", "revert src snap -y"), ("extend", "extend src 5M"), ("delete", "delete bystander -y")]
)
def test_what_would_be_completed_is_not_done_again(rig: Rig, tmp_path: Path, call: str, line: str) -> None:
    name = line.split()[1]
    there = rig.pools["a"] / f"volume-{rig.there(name)['id']}"
    saved_while(rig, tmp_path / "copy", *line.split(), call=call)
    size = 9 * MiB
    there.write_bytes(b"\7" * size)
    put_back(rig, tmp_path / "copy")
    rig.run("list", status=0)
    assert there.read_bytes() == b"\7" * size
    assert rig.there(name)["status"] == "error"
    tables = oracle.load(rig.state)
    assert [row["phase"] for row in tables["flows"] if row["name"] == f"volume_{call}"][-1] == "abandoned"

"""volctl attach and detach as programs: what they print, and what they say to whom may not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Volctl


@pytest.mark.root
def test_attach_prints_the_device_and_detach_takes_it_away(volctl: Volctl) -> None:
    volctl("create", "v", "--size", "4M")
    device = volctl("attach", "v", "--read-only", "--sector-size", "4096").out
    try:
        assert device.startswith("/dev/loop") and Path(device.strip()).is_block_device()
        assert volctl("attach", "v", "--read-only", "-o", "value").out == device
        shown = volctl("show", "v", "--json").json()
        (attachment,) = shown["attachments"]
        assert shown["status"] == "in-use" and attachment["attached_at"].endswith("Z")
        assert (attachment["device"], attachment["read_only"]) == (device.strip(), True)
        assert volctl("attach", "v", "--read-only", "--json").json()["attachments"] == [attachment]
        refused = volctl("attach", "v", status=5)
        assert "attached already" in refused.err and "volctl detach v" in refused.err
        refused = volctl("delete", "v", "--yes", "--json", status=5)
        assert json.loads(refused.err.splitlines()[-1])["error"]["code"] == "in_use"
        assert [row["id"] for row in volctl("attach", "--all", "--json").json()] == [shown["id"]]
        assert volctl("attach", "--all").out.split()[-4:] == ["v", "in-use", f"{device.strip()},", "read-only"]
    finally:
        volctl("detach", "v")
    assert volctl("detach", "v", "--json").json()["attachments"] == []
    assert volctl("attach", "--all", "--json").json() == []


@pytest.mark.root
def test_what_is_open_is_not_detached_and_the_mount_is_named(volctl: Volctl) -> None:
    device = volctl("create", "v", "--size", "16M", "--attach", "--json").json()["attachments"][0]["device"]
    mount = volctl.home / "mount"
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, mount], check=True)
    try:
        refused = volctl("detach", "v", status=5).err
        assert device in refused and f"mounted on {mount}" in refused
    finally:
        subprocess.run(["umount", mount], check=True)
    volctl("detach", "v")


def test_an_ordinary_user_is_told_the_command_for_root(as_user: Volctl) -> None:
    as_user("create", "v", "--size", "4M")
    for words in (("attach", "v"), ("create", "w", "--size", "1M", "--attach")):
        refused = as_user(*words, status=9).err
        assert f"hint: sudo VOLCTL_STATE_DIR={as_user.state} VOLCTL_CONFIG={as_user.home}/config.toml volctl" in refused
    assert [row["name"] for row in as_user("list", "--json").json()] == ["v"]
    assert as_user("detach", "v", "--json").json()["status"] == "available"


@pytest.mark.root
def test_root_attaches_as_the_hint_says_and_the_user_sees_it(as_user: Volctl) -> None:
    as_user("create", "v", "--size", "4M")
    hint = as_user("attach", "v", status=9).err.splitlines()[-1]
    words = shlex.split(hint.removeprefix("hint: sudo "))
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    root = Volctl(as_user.argv[as_user.argv.index("env") + 1 :], as_user.home, {**as_user.environment, **settings})
    verb = words[words.index("volctl") + 1 :]
    device = root(*verb).out
    try:
        assert as_user("attach", "v").out == device
        assert as_user("show", "v", "--json").json()["status"] == "in-use"
        assert "detach v" in as_user("detach", "v", status=9).err
        owners = {os.stat(path).st_uid for path in as_user.state.rglob("*")}
        assert owners == {as_user.state.stat().st_uid}
    finally:
        root("detach", "v")
    assert as_user("show", "v", "--json").json()["status"] == "available"
    as_user("delete", "v", "--yes")


@pytest.mark.parametrize(
    "words", ["", "v --all", "--all --read-only", "v --sector-size big", "v --sector-size 0", "v --sector-size 8192"]
)
def test_usage(volctl: Volctl, words: str) -> None:
    volctl("create", "v", "--size", "1M")
    status = 2 if os.geteuid() == 0 or "8192" not in words else 9
    volctl("attach", *words.split(), status=status)

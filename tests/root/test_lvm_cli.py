"""volctl itself on a volume group: the four branches byte for byte, and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Volctl
from tests.root.lvm_rig import lvs, run, volume_group
from volctl.model import MiB

GROUP = "cli-group"


@pytest.fixture(params=["thin", "thick"])
def provisioning(request: pytest.FixtureRequest, disks: list[Path]) -> Iterator[str]:
    with volume_group(disks[:2], GROUP):
        yield request.param


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A qcow2 of 16 MiB: data, a hole, data, and a last sector."""
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    raw.write_bytes(b"i" * 3 * MiB + bytes(9 * MiB) + b"j" * 4 * MiB)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    return image


def content(volctl: Volctl, name: str) -> bytes:
    device = Path(json.loads(volctl("attach", name, "--json").out)["attachments"][0]["device"])
    try:
        return device.read_bytes()
    finally:
        volctl("detach", name)


def test_all_four_branches(volctl: Volctl, provisioning: str, image: Path) -> None:
    (volctl.home / "config.toml").write_text(
        f'[[backend]]\nname = "fast"\nkind = "lvm"\nvolume_group = "{GROUP}"\nprovisioning = "{provisioning}"\n'
    )
    volctl("create", "early", "--size", "16M", status=6)
    volctl("backend", "init", "fast", "-y")
    wanted = b"i" * 3 * MiB + bytes(9 * MiB) + b"j" * 4 * MiB
    volctl("create", "a", "--size", "20M", "--from-image", image)
    assert content(volctl, "a") == wanted + bytes(4 * MiB)
    volctl("snapshot", "create", "a", "s")
    volctl("extend", "a", "24M")
    volctl("create", "b", "--size", "28M", "--from-snapshot", "s")
    volctl("create", "c", "--from-volume", "a")
    volctl("create", "d", "--size", "8M")
    assert content(volctl, "b") == wanted + bytes(12 * MiB)
    assert content(volctl, "c") == wanted + bytes(8 * MiB)
    assert content(volctl, "d") == bytes(8 * MiB)
    device = Path(json.loads(volctl("attach", "a", "--json").out)["attachments"][0]["device"])
    with device.open("r+b") as file:
        file.write(b"changed")
    volctl("delete", "a", "-y", "--cascade", status=5)
    volctl("detach", "a")
    volctl("revert", "a", "s", "-y")
    assert content(volctl, "a") == wanted + bytes(8 * MiB)
    shown = json.loads(volctl("backend", "show", "fast", "--json").out)["details"]
    assert shown["provisioning"] == provisioning and shown["thin_pool_autoextend_threshold"] == 100
    assert provisioning == "thick" or (shown["when_full"] == "error" and shown["monitored"] and shown["data_percent"])
    volctl("create", "too-large", "--size", "10T", status=6)
    volctl("delete", "a", "b", "c", "d", "-y", "--cascade")
    assert set(lvs(GROUP)) <= {"volctl"} and json.loads(volctl("list", "--json").out) == []


def test_a_lost_group_is_said(volctl: Volctl, provisioning: str) -> None:
    (volctl.home / "config.toml").write_text(
        f'[[backend]]\nname = "fast"\nkind = "lvm"\nvolume_group = "{GROUP}"\nprovisioning = "{provisioning}"\n'
    )
    volctl("backend", "init", "fast", "-y")
    volctl("create", "v", "--size", "8M")
    subprocess.run(["vgexport", GROUP], check=True)
    said = volctl("delete", "v", "-y", status=None)
    assert said.status == 8 and "is exported" in said.err
    assert "is exported" in json.loads(volctl("backend", "show", "fast", "--json").out)["problems"][0]
    subprocess.run(["vgimport", GROUP], check=True)
    (volctl.state / "volctl.db").rename(volctl.home / "away")
    assert volctl("list", status=11).err.count("fast") >= 1

"""volctl itself on a volume group: the four branches byte for byte, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import volctl.cli
import volctl.cli.app
import volctl.service
from tests.conftest import Ran, Volctl
from tests.root.lvm_rig import lvs, run, volume_group
from volctl.model import MiB

GROUP = "cli-group"


@dataclass(frozen=True, slots=True)
class Warm(Volctl):
    """volctl in a fork of this process: to start Python takes seconds where the processor is emulated."""

    def __call__(self, *args: str | Path, status: int | None = 0, cwd: Path | None = None) -> Ran:
        child = os.fork()
        if not child:
            os.chdir(cwd or self.home)
            os.environ.clear()
            os.environ.update(self.environment)
            for number, name in enumerate((os.devnull, "out", "err")):
                os.dup2(os.open(self.home / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os._exit(volctl.cli.main(list(map(str, args))))
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out, err = ((self.home / name).read_text() for name in ("out", "err"))
        if status is not None and ended != status:
            pytest.fail(f"volctl {' '.join(map(str, args))}: exit {ended}, not {status}\n{err}")
        return Ran(ended, out, err)


@pytest.fixture
def warm(volctl: Volctl) -> Volctl:
    return Warm(volctl.argv, volctl.home, volctl.environment)


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


def test_all_four_branches(warm: Volctl, provisioning: str, image: Path) -> None:
    (warm.home / "config.toml").write_text(
        f'[[backend]]\nname = "fast"\nkind = "lvm"\nvolume_group = "{GROUP}"\nprovisioning = "{provisioning}"\n'
    )
    warm("create", "early", "--size", "16M", status=6)
    warm("backend", "init", "fast", "-y")
    wanted = b"i" * 3 * MiB + bytes(9 * MiB) + b"j" * 4 * MiB
    warm("create", "a", "--size", "20M", "--from-image", image)
    assert content(warm, "a") == wanted + bytes(4 * MiB)
    warm("snapshot", "create", "a", "s")
    warm("extend", "a", "24M")
    warm("create", "b", "--size", "28M", "--from-snapshot", "s")
    warm("create", "c", "--from-volume", "a")
    warm("create", "d", "--size", "8M")
    assert content(warm, "b") == wanted + bytes(12 * MiB)
    assert content(warm, "c") == wanted + bytes(8 * MiB)
    assert content(warm, "d") == bytes(8 * MiB)
    device = Path(json.loads(warm("attach", "a", "--json").out)["attachments"][0]["device"])
    with device.open("r+b") as file:
        file.write(b"changed")
    warm("delete", "a", "-y", "--cascade", status=5)
    warm("detach", "a")
    warm("revert", "a", "s", "-y")
    assert content(warm, "a") == wanted + bytes(8 * MiB)
    shown = json.loads(warm("backend", "show", "fast", "--json").out)["details"]
    assert shown["provisioning"] == provisioning and shown["thin_pool_autoextend_threshold"] == 100
    assert provisioning == "thick" or (shown["when_full"] == "error" and shown["monitored"] and shown["data_percent"])
    warm("create", "too-large", "--size", "10T", status=6)
    warm("delete", "a", "b", "c", "d", "-y", "--cascade")
    assert len(json.loads(warm("image", "cache", "prune", "--all", "--json").out)) == (provisioning == "thin")
    assert set(lvs(GROUP)) <= {"volctl"}
    assert {volume["name"] for volume in json.loads(warm("list", "--json").out)} == {"early", "too-large"}


def configure(volctl: Volctl, provisioning: str) -> None:
    (volctl.home / "config.toml").write_text(
        f'[[backend]]\nname = "fast"\nkind = "lvm"\nvolume_group = "{GROUP}"\nprovisioning = "{provisioning}"\n'
    )
    volctl("backend", "init", "fast", "-y")


def test_a_lost_group_is_said(warm: Volctl, provisioning: str) -> None:
    configure(warm, provisioning)
    warm("create", "v", "--size", "8M")
    subprocess.run(["vgchange", "-an", GROUP], check=True)
    subprocess.run(["vgexport", GROUP], check=True)
    said = warm("delete", "v", "-y", status=None)
    assert said.status == 8 and "is exported" in said.err
    assert "is exported" in json.loads(warm("backend", "show", "fast", "--json").out)["problems"][0]
    subprocess.run(["vgimport", GROUP], check=True)
    (warm.state / "volctl.db").rename(warm.home / "away")
    assert warm("list", status=11).err.count("fast") >= 1


def test_the_group_is_asked_while_the_request_is_checked(warm: Volctl, provisioning: str) -> None:
    """Once, before there is a row; and nothing is left of the question where it is not wanted in the end."""
    configure(warm, provisioning)
    told = warm("create", "v", "--size", "8M", "--verbose").err.splitlines()
    (asked,) = (number for number, line in enumerate(told) if line.startswith("+ lvm fullreport"))
    assert asked < told.index("volume_create_api: QuotaReserveTask done")
    warm("quota", "set", "--volumes", "1")
    warm("create", "w", "--size", "8M", status=6)
    assert subprocess.run(["pgrep", "-x", "lvm"], check=False, stdout=subprocess.DEVNULL).returncode == 1

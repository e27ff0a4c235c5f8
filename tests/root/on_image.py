"""What tests/system/test_lvm_boot.py does in the guest: `make` in its first boot, `again` in its second.

Two groups, on /dev/vdb and /dev/vdc; what the volumes hold goes to /dev/vdd and /dev/vde.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.engine.crash import Zygote
from tests.root.lvm_rig import run
from tests.root.warm import Warm

HOME = Path("/var/lib/volctl/image")
GROUPS = {"thin": "/dev/vdb", "thick": "/dev/vdc"}


def make(warm: Warm) -> None:
    """The image of /in on a thin and on a thick LV, both attached."""
    (image,) = Path("/in").glob("*.qcow2")
    HOME.mkdir()
    tables = [
        f'[[backend]]\nname = "{kind}"\nkind = "lvm"\nvolume_group = "vg-{kind}"\nprovisioning = "{kind}"\n'
        for kind in GROUPS
    ]
    (HOME / "config.toml").write_text("".join(tables))
    for kind, disk in GROUPS.items():
        run("vgcreate", "-q", f"vg-{kind}", disk)
        warm("backend", "init", kind, "-y")
        warm("create", kind, "--size", "2100M", "--from-image", image, "--backend", kind)
        print(kind, "attached as", warm("attach", kind).out.strip())


def again(warm: Warm) -> None:
    """Nothing is active after the boot; `attach --all` brings both back, and their bytes are taken out."""
    assert {volume["status"] for volume in warm("list", "--json").json()} == {"available"}
    back = warm("attach", "--all", "--json").json()
    assert sorted(volume["name"] for volume in back) == sorted(GROUPS)
    for kind, target in zip(GROUPS, ("/dev/vdd", "/dev/vde"), strict=True):
        device = warm("path", kind).out.strip()
        run("dd", f"if={device}", f"of={target}", "bs=4M", "iflag=direct", "oflag=direct", "conv=sparse")
        warm("detach", kind)


if __name__ == "__main__":
    zygote = Zygote("backends.lvm")
    {"make": make, "again": again}[sys.argv[1]](Warm(zygote, HOME))
    zygote.close()

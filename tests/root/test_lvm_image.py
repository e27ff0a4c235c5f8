"""The main job on thin LVM: the real image, in /in, is the beginning of an LV of ten gigabytes."""

from __future__ import annotations

from pathlib import Path

from tests.root.lvm_rig import lvs, run, volume_group
from tests.root.warm import Warm

GROUP = "main-job"


def test_the_image_is_an_lv_of_ten_gigabytes(warm: Warm, disks: list[Path]) -> None:
    (image,) = Path("/in").glob("*.qcow2")
    with volume_group(disks[:2], GROUP):
        warm.configure(GROUP, provisioning="thin")
        made = warm("create", "debian", "--size", "10", "--from-image", image, "--json").json()
        assert (made["status"], made["size"], made["bootable"]) == ("available", 10 << 30, True)
        device = warm("attach", "debian").out.strip()
        # Its own view of the image; beyond the end of that all must be zeros.
        assert "identical" in run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, device)
        with Path(device).open("r+b") as file:
            file.seek(9 << 30)
            file.write(b"another")
        assert "mismatch" in run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, device, check=False)
        warm("detach", "debian")
        warm("delete", "debian", "-y")
        assert lvs(GROUP) == ["volctl"]

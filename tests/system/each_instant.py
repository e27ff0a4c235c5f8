"""The guest's half of `powercut.checked`: calls `check` of a Python file for each instant, in a process of its own.

The file is loaded once, and what it imports: that costs seconds where the processor is emulated.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LVM_CONFIG = Path("/etc/lvm/lvmlocal.conf")
STATE = Path("/var/lib/volctl")


@dataclass(frozen=True, slots=True)
class Copy:
    """What `check` is given: the disks of one instant, and what the program had said by then."""

    name: str
    disks: list[str]
    said: str


Check = Callable[[Copy], None]


def blank_disks() -> list[str]:
    blocks = sorted(Path("/sys/block").glob("vd*"), key=lambda block: (len(block.name), block.name))
    return [f"/dev/{block.name}" for block in blocks if not (block / "serial").read_text().strip()]


def run(*argv: str | Path) -> None:
    subprocess.run(list(map(str, argv)), check=True, stdout=subprocess.DEVNULL)


def show_only(disks: list[str], before: str) -> None:
    """The volume groups of all instants are the same one: LVM may see one of them at a time."""
    accepted = ", ".join(f'"a|^{disk}$|"' for disk in disks)
    LVM_CONFIG.write_text(before.replace("devices {", f'devices {{ global_filter = [{accepted}, "r|.*|"]\n', 1))


def take_down() -> None:
    """Ends what udev activated while the machine came up: of groups of one name, LVs on the disks of any instant."""
    deadline = time.monotonic() + 60
    while mapped := sorted(Path("/sys/block").glob("dm-*")):
        assert time.monotonic() < deadline, f"still mapped: {mapped}"
        run("dmsetup", "remove_all")
        run("udevadm", "settle")


def passes(check: Check, copy: Copy) -> bool:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            check(copy)
            status = 0
        except BaseException:  # told here; the parent hears the status
            print(f"instant {copy.name}, after: {copy.said[-500:]}", file=sys.stderr)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    check: Check = runpy.run_path(sys.argv[1])["check"]
    before, places = LVM_CONFIG.read_text(), iter(blank_disks())
    failed = []
    take_down()
    for fact in json.loads(Path("/in/instants.json").read_text()):
        copy = Copy(fact["name"], [next(places) for _ in range(fact["disks"])], fact["said"])
        show_only(copy.disks, before)
        run("mount", next(places), STATE)
        run("vgchange", "-qq", "-aay")  # as when the machine comes up
        if not passes(check, copy):
            failed.append(copy.name)
        run("vgchange", "-qq", "-an")
        run("umount", STATE)
    Path("/out/failed.json").write_text(json.dumps(failed))


if __name__ == "__main__":
    main()

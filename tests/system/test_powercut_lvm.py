"""The power goes while volctl creates, extends, snapshots and deletes on LVM; after boot and one command all holds.

`VOLCTL_POWER_CUTS` says how many instants are looked at (9), the seed which, `VOLCTL_CUT_ROUNDS` how often the work is
done meanwhile.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sampling import spread
from tests.system.powercut import Instant, checked, copies_during

CUTS = int(os.environ.get("VOLCTL_POWER_CUTS", "9"))
ROUNDS = int(os.environ.get("VOLCTL_CUT_ROUNDS", max(1, CUTS // 50)))
PROGRAM = f"VOLCTL_CUT_ROUNDS={ROUNDS} exec python3 tests/root/cut_lvm.py /dev/vdb /dev/vdc"
ALL = 1_000_000
BATCH = 11  # instants of one boot: three disks each, at which udev looks before anything runs


def in_flight(instant: Instant) -> list[str]:
    """The commands that were cut."""
    open_ones: list[str] = []
    for line in instant.said.splitlines():
        word, _, order = line.partition(" ")
        if word == "begin":
            open_ones.append(order)
        elif word == "done":
            open_ones.remove(order)
    return open_ones


@pytest.mark.vm
def test_after_every_power_cut_one_command_puts_all_right(
    tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    every = copies_during(PROGRAM, tmp_path, ["128M", "128M"], every=0.5, most=ALL, since="ready")
    cut = [instant for instant in every if in_flight(instant)]
    chosen = list(spread(cut, "cuts", CUTS))
    orders = {order for instant in cut for order in in_flight(instant)}
    print(f"{len(every)} copies, {len(cut)} while a command ran, {len(chosen)} looked at: {sorted(orders)}")
    assert len(chosen) >= min(CUTS, 30)
    verbs = {order.split(" ")[0] for order in orders}
    assert verbs == {"create", "extend", "snapshot", "delete"}
    batches = [chosen[first : first + BATCH] for first in range(0, len(chosen), BATCH)]
    failed = [name for batch in batches for name in checked(batch, "tests/root/cut_lvm.py")]
    record_property("counted", f"{len(chosen)} {len(cut)} power cuts")
    assert failed == []
    shutil.rmtree(tmp_path / "copies")

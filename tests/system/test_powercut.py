"""Can the power-cut rig tell what was durable from what was not?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.powercut import checked, copies_during

PROGRAM = """
    vgcreate -qq rig /dev/vdb
    make() {
        lvcreate -qq -L 4M -n $1 -y -Wn -Zn rig 2>&1
        echo $1 >/var/lib/volctl/$1
        [ $1 = unsynced ] || sync
        echo made $1
        sleep 0.5
    }
    make one; make two; make three; make unsynced
    sleep 2
"""


@pytest.mark.vm
def test_what_was_synced_is_there_after_every_cut_and_the_rest_is_missed(tmp_path: Path) -> None:
    instants = copies_during(PROGRAM, tmp_path, ["64M"], every=0.3, most=12)
    assert len({instant.said for instant in instants}) >= 4
    failed = checked(instants, "tests/root/cut_rig.py")
    assert failed != []
    assert failed == [instant.directory.name for instant in instants if "made unsynced" in instant.said]

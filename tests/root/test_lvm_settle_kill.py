"""kill -9 while the next command settles what the first had left; then one more; then all holds."""

from __future__ import annotations

import pytest

from tests.engine.crash import KILLED
from tests.root.lvm_crash import SETTLE, Rig
from tests.root.test_lvm_kill import CASES, after, one
from tests.sampling import numbers


@pytest.mark.parametrize(("name", "backend"), [("from-volume", "thin"), ("revert", "thin"), ("extend", "thick")])
def test_a_settle_that_is_killed_is_settled_by_the_next(rig: Rig, name: str, backend: str) -> None:
    """What died had done its work, and not said so."""
    case, wrong = CASES[name], {}
    whole, found = one(rig, case, backend, None, None)
    assert found == []
    number = len(whole.points) - whole.points[::-1].index("before commit")
    for second in numbers(f"settle {name}", 9):  # a settle has not many more points than that
        rig.put_back(backend, attached=False)
        before = rig.row(case.object.replace("B", backend))
        died = rig.run(*case.words(rig, backend), programs=True, die_at=number, status=KILLED)
        settling = rig.run(*SETTLE, programs=True, die_at=second)
        if found := after(rig, case, backend, before, died, whole):
            wrong[f"{second}: {settling.points[-1:]}"] = found
        if settling.status != KILLED:
            break
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())

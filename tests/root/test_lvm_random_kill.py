"""A command on real LVM is killed or interrupted at any time, and the ones after it while they settle; then all holds.

`VOLCTL_RANDOM_KILLS` says how many on thin and on thick each, the seed which. Other than in `test_lvm_kill` nobody
knows how far the command had come: its object is as it was or as it should be, and what the command said is true.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.engine.attack import AGAIN, attack, wrong_end
from tests.engine.crash import Ended
from tests.oracle import Content, Row
from tests.root.counted import counted, noted
from tests.root.lvm_crash import SETTLE, Rig, alone
from tests.root.test_lvm_kill import BOTH, CASES, Case, attached, detached, gone, grown, grown_in_use, made, reverted
from tests.sampling import SEED

KILLS = int(os.environ.get("VOLCTL_RANDOM_KILLS", "3"))
BATCH = 50  # kills of one test
Status = Callable[[Row | None], bool]


def _in(*states: str | None) -> Status:
    return lambda row: (row["status"] if row else None) in states


DONE_INTACT: dict[object, tuple[Status, Status]] = {
    made: (_in("available"), _in(None, "error")),
    gone: (_in(None), _in("available")),
    attached: (_in("in-use"), _in("available")),
    detached: (_in("available"), _in("in-use")),
}
"""What the row of a command's object says when it was done, and when not."""
COMPLETED = (gone, grown, grown_in_use, reverted, detached)
"""Verbs that a later command completes."""
KILLED = {
    backend: [name for name, other in BOTH if other == backend and CASES[name].status == 0]
    for backend in ("thin", "thick")
}


@dataclass(slots=True)
class Usual:
    """Seconds of a command line, so guessed that it outlives some of its attacks."""

    known: dict[tuple[str, ...], float] = field(default_factory=dict)

    def attacked(self, rig: Rig, words: tuple[str, ...], rng: random.Random) -> tuple[Ended, str]:
        usual = self.known.get(words[:2], 2.0)
        pid = rig.start(*words)
        how = attack(pid, rng, usual)
        ended = rig.zygote.join(pid)
        self.known[words[:2]] = usual * (0.9 if ended.status == 0 else 1.05)
        return ended, f"{' '.join(words)} by {how}: exit {ended.status}"


@pytest.mark.parametrize("first", range(0, KILLS, BATCH))
@pytest.mark.parametrize("backend", KILLED)
def test_killed_at_any_time_and_while_settling(rig: Rig, backend: str, first: int) -> None:
    usual = Usual()
    for number in range(first, min(first + BATCH, KILLS)):
        rng = random.Random(f"{SEED} {backend} {number}")
        name = rng.choice(KILLED[backend])
        said, found = one(rig, CASES[name], backend, usual, rng)
        assert not found, "\n".join([f"kill {number} of seed {SEED} on {backend}", *said, *found])
        counted(f"kills on {backend}", 1, 1)
    rig.put_back(backend, attached=False)


def one(rig: Rig, case: Case, backend: str, usual: Usual, rng: random.Random) -> tuple[list[str], list[str]]:
    """What was done, and what is wrong then."""
    rig.put_back(backend, case.attached, case.cache)
    name = case.object.replace("B", backend)
    before = rig.row(name)
    first, told = usual.attacked(rig, tuple(case.words(rig, backend)), rng)
    noted("killed" if first.status < 0 else "survivors of their own kill", 1)
    said, found = [told], wrong_end(first)
    while rng.random() < AGAIN:
        again, told = usual.attacked(rig, SETTLE, rng)
        noted("killed while settling", 1)
        said.append(told)
        found += wrong_end(again)
    alone(rig.state)
    return said, [*found, *outcome(rig, case, backend, before, first)]


def outcome(rig: Rig, case: Case, backend: str, before: Row | None, first: Ended) -> list[str]:
    """One more command, then everything: SPEC section 11, and that the verb was done or was not."""
    name = case.object.replace("B", backend)
    then: dict[str, Content] = {name: rig.contents[case.reads_as]} if case.reads_as else {}
    found = rig.settled(backend, **then)
    done, intact = not found, False
    if case.verdict is reverted:
        if found and first.status != 0:
            found, intact = rig.settled(backend), True
        rig.write(name, "now")
    elif case.verdict in (grown, grown_in_use):
        assert before
        more = rig.there(name)["size"] - before["size"]
        done, intact = more == 4 << 20, more == 0
    else:
        done, intact = (check(rig.row(name)) for check in DONE_INTACT[case.verdict])
    if done == intact:
        found.append(f"{name} is neither done nor as it was: {rig.row(name)}")
    if first.status == 0 and not done:
        found.append(f"exit 0, but it was not done: {first.err}")
    if first.status > 0 and done and case.verdict not in COMPLETED:
        found.append(f"exit {first.status}, but it was done: {first.err}")
    return found

"""Every system call that changes something, one after another: killed before it, or made to fail."""

from __future__ import annotations

from collections.abc import Iterator

from tests.engine.crash import KILLED, Ended, Rig
from tests.torture.core import Budget, Tally, another, quiet, worlds
from tests.torture.strace import QEMU, VOLCTL, Point, count, happened, traced
from tests.torture.verbs import UNREADABLE, VERBS, Verb, fitting, outcome

ACTIONS = ("signal=KILL", "error=ENOSPC", "error=EIO", "error=EINTR", "error=EDQUOT")
CODES = {0, 6, 8, 9, 11}
LIMIT = {VOLCTL: "20s", QEMU: "4s"}  # a qemu-img whose wake-ups fail waits for ever


def of_a_create(kind: str, budget: Budget) -> Tally:
    """Every point of one create from an image."""
    return _run(kind, budget, ["create-image"])


def of_the_others(kind: str, budget: Budget) -> Tally:
    """The other verbs, in an order that the seed decides. For a few cases not all are counted first."""
    return _run(kind, budget, [])


def _run(kind: str, budget: Budget, names: list[str]) -> Tally:
    rng = budget.random("syscalls")
    with worlds(kind) as world:
        others = [name for name in fitting(world) if name != "create-image"]
        few = not names and budget.cases is not None and budget.cases < 10 * len(others)
        chosen = names or (rng.sample(others, 1 + (budget.cases or 0) // 10) if few else others)
        points = [(name, point) for name in chosen for point in found(world, VERBS[name])]
        tally = Tally(total=None if few else len(points))
        rng.shuffle(points)
        for name, point in points:
            if budget.spent(tally):
                break
            hurt(world, name, point, tally)
    return tally


def found(world: Rig, verb: Verb) -> Iterator[Point]:
    """Every point of a verb."""
    for who in (VOLCTL, QEMU):
        with another(world) as rig:
            verb.prepare(rig)
            numbers = count(rig, rig.words(verb.argv), who)
        for call, times in numbers.items():
            yield from (Point(who, call, number, action) for number in range(1, times + 1) for action in ACTIONS)


def hurt(world: Rig, name: str, point: Point, tally: Tally) -> None:
    """One verb in a world of its own, hurt at one point."""
    verb = VERBS[name]
    with another(world) as rig:
        verb.prepare(rig)
        ended, log = traced(rig, [*rig.words(verb.argv), "--timeout", LIMIT[point.who]], point.who, point.expression)
        wrong = [] if quiet(rig.root) else ["a process lives on"]
        wrong += _told(ended, point, verb) + outcome(rig, verb, ended)
    if happened(point, log) or ended.status == KILLED:
        tally.add(f"{name}, {point} (exit {ended.status})", wrong)
    elif wrong:
        tally.wrong += [f"{name}, {point} did not come: {sentence}" for sentence in wrong]


def _told(ended: Ended, point: Point, verb: Verb) -> list[str]:
    if point.action == "signal=KILL" and point.who == VOLCTL:
        return [] if ended.status == KILLED else [f"exit {ended.status}, though it was killed"]
    if ended.status in {*CODES, *verb.codes} or (ended.status == 124 and point.who == QEMU):
        return []
    return [] if ended.status == 1 and UNREADABLE in ended.err else [f"exit {ended.status}: {ended.err.strip()}"]

"""kill -9 at every transaction, outside action and file event: the kill matrix of `tests.engine`, and every verb."""

from __future__ import annotations

from tests.engine.crash import KILLED, Rig
from tests.engine.test_kill_matrix import CASES, killed_everywhere
from tests.sampling import numbers
from tests.torture.core import Budget, Tally, another, worlds
from tests.torture.verbs import Verb, fitting, outcome


def run(kind: str, budget: Budget) -> Tally:
    """Verb by verb; on the backend `fake`, which fails when it is told, the cases of the engine's own matrix before."""
    tally, cases = Tally(), list(CASES) if kind == "fake" else []
    with worlds(kind) as world:
        verbs = fitting(world)
        for number, name in enumerate([*cases, *verbs]):
            if budget.spent(tally):
                tally.told.append(f"{number} of {len(cases) + len(verbs)} verbs")
                break
            if number < len(cases):
                points, wrong = killed_everywhere(world, CASES[name], name, 1, first=budget.stop_at_first)
            else:
                points, wrong = everywhere(world, verbs[name], 1)
            tally.runs += points
            tally.wrong += [f"{name}, {where}: {'; '.join(found)}" for where, found in wrong.items()]
    return tally


def everywhere(world: Rig, verb: Verb, usual: int) -> tuple[int, dict[str, list[str]]]:
    """How many points there are, and what was wrong after which of them; one of `usual` is taken."""
    wrong = {}
    for number in numbers(verb.argv, usual):
        with another(world) as rig:
            verb.prepare(rig)
            died = rig.run(*rig.words(verb.argv), files=True, die_at=number)
            if found := outcome(rig, verb, died):
                wrong[f"{number}: {died.points[-1]}"] = found
        if died.status != KILLED:
            assert died.status == 0, died.err
            return number - 1, wrong
    raise AssertionError  # it goes on until one is not killed

"""The kill matrix of `tests.engine`, counted: kill -9 at every transaction, outside action and file event."""

from __future__ import annotations

from tests.engine.test_kill_matrix import CASES, killed_everywhere
from tests.torture.core import Budget, Tally, worlds

OF_FILES = (
    "blank",
    "from-snapshot",
    "from-volume",
    "from-image",
    "delete",
    "extend",
    "snapshot",
    "revert",
    "image-add",
)
"""The cases that need no backend which fails when it is told."""


def run(kind: str, budget: Budget) -> Tally:
    """Case by case."""
    tally, names = Tally(), list(CASES) if kind == "fake" else OF_FILES
    with worlds(kind) as world:
        for number, name in enumerate(names):
            if budget.spent(tally):
                tally.told.append(f"{number} of {len(names)} verbs")
                break
            points, wrong = killed_everywhere(world, CASES[name], first=budget.stop_at_first)
            tally.runs += points
            tally.wrong += [f"{name}, {where}: {'; '.join(found)}" for where, found in wrong.items()]
    return tally

"""`doctor`: the rows, the journal, the image store and every backend compared, and put right.

Nothing is adopted silently, and nothing is deleted but what both its backend's mark and the database
call ours, and only when it was agreed to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

from volctl.db import volumes
from volctl.engine.locks import EXCLUSIVE, LockSet, Names
from volctl.errors import Failure
from volctl.service.doctor.difference import Difference
from volctl.service.doctor.finding import Finding
from volctl.service.doctor.integrity import check_integrity
from volctl.service.doctor.rebuild import plan as rebuild_plan
from volctl.service.doctor.rebuild import rebuild
from volctl.service.doctor.suspects import foreign, suspects
from volctl.service.session import Session

__all__ = ["Finding", "agreed_to", "look", "rebuild", "rebuild_plan", "repair"]


def look(session: Session, *, others: bool = False) -> list[Finding]:
    """Every difference there is now; with `others` also what is not ours."""
    check_integrity(session.store)
    found = [_finding(suspect) for suspect, _ in _confirmed(session)]
    return [*found, *_foreign(session)] if others else found


def _foreign(session: Session) -> Iterator[Finding]:
    for backend, name in foreign(session):
        yield Finding("foreign", name, None, None, backend, "not ours", None)


def repair(session: Session, agreed: Callable[[Finding], bool], *, others: bool = False) -> list[Finding]:
    """Put right what can be; `agreed` is asked before bytes go. What is left as it was says why."""
    check_integrity(session.store)
    session.catch_up(None)
    done = []
    for suspect, locks in _confirmed(session):
        finding = _finding(suspect)
        if suspect.fix is not None and (not suspect.deletes or agreed(finding)):
            finding = _repaired(session, suspect, locks)
        done.append(finding)
    return [*done, *_foreign(session)] if others else done


def _repaired(session: Session, suspect: Difference, locks: LockSet) -> Finding:
    try:
        suspect.repair(session, locks)
    except Failure as error:
        suspect.problem += f"; not put right: {error.message}"
        return _finding(suspect)
    return _finding(suspect, fixed=True)


def _confirmed(session: Session) -> Iterator[tuple[Difference, LockSet]]:
    """What is so under its locks as well; whoever holds one of them lives, and is left alone."""
    for suspect in suspects(session):
        locks = session.locked_now(partial(_with_trees, session, suspect.locks))
        if locks is None:
            continue
        with locks:
            if suspect.look(session):
                yield suspect, locks


def _with_trees(session: Session, names: Names) -> Names:
    """And the trees whose files they share."""
    with session.store.read() as tx:
        trees = [tree for name in names for tree in volumes.lock_names(tx, name)]
    return dict.fromkeys(trees, EXCLUSIVE) | dict(names)


def _finding(suspect: Difference, *, fixed: bool = False) -> Finding:
    return Finding(
        suspect.kind,
        suspect.object,
        suspect.id,
        suspect.name,
        suspect.backend,
        suspect.problem,
        suspect.fix,
        suspect.deletes and suspect.fix is not None,
        fixed,
    )


def agreed_to(findings: Collection[Finding]) -> Callable[[Finding], bool]:
    """Only to what was shown: the same thing about the same object."""
    keys = {(finding.kind, finding.object, finding.backend) for finding in findings}
    return lambda finding: (finding.kind, finding.object, finding.backend) in keys

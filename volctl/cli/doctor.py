"""volctl doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from volctl import interrupt
from volctl.cli import stderr
from volctl.cli.human import size
from volctl.cli.options import common, typer_app, verb
from volctl.cli.output import View, view
from volctl.cli.session import ask, must_agree, options, session
from volctl.errors import DriftError, UsageError

if TYPE_CHECKING:
    from volctl.service import Session
    from volctl.service.doctor import Finding

app = typer_app()

FIELDS = ("kind", "object", "id", "name", "backend", "problem", "fix", "deletes", "fixed")
COLUMNS = ("object", "name", "backend", "problem", "fix", "fixed")


@verb(app, "doctor")
def doctor(
    ctx: typer.Context,
    fix: Annotated[
        bool, typer.Option("--fix", help="Put right what can be; what deletes bytes is asked first")
    ] = False,
    take_over: Annotated[bool, typer.Option("--take-over", help="First take over another host's database")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make a lost database again, from what the backends hold")
    ] = False,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="List also what is not volctl's; it is left alone")
    ] = False,
) -> None:
    """Compare the database with what is there; exit 12 if they differ."""
    shown = view(ctx, FIELDS, COLUMNS)
    if rebuild:
        if fix or take_over or foreign:
            raise UsageError("--rebuild goes alone: there is nothing to compare yet")
        shown.many(_rebuild(ctx))
        return
    with session(ctx, reads=not fix, take_over=take_over) as s:
        from volctl.service import doctor

        findings = doctor.look(s, others=foreign)
        _tell_health(ctx, s)
    if fix and findings:
        agreed = doctor.agreed_to(_agreed(ctx, findings))
        with session(ctx) as s:
            findings = doctor.repair(s, agreed, others=foreign)
    _show(ctx, shown, findings)


def _rebuild(ctx: typer.Context) -> list[Finding]:
    from volctl.cli import progress
    from volctl.service import doctor

    must_agree(ctx, doctor.rebuild_plan(options(ctx)))
    interrupt.install(common(ctx).timeout)
    with progress.watching(common(ctx), flows=False) as watcher:
        return doctor.rebuild(options(ctx), watcher)


def _agreed(ctx: typer.Context, findings: list[Finding]) -> list[Finding]:
    """Those that delete, if that is wanted."""
    deletions = [finding for finding in findings if finding.deletes]
    lines = [f"  {finding.problem}: {finding.fix}" for finding in deletions]
    text = "\n".join(["This deletes, for good:", *lines])
    return deletions if deletions and ask(ctx, text) else []


def _show(ctx: typer.Context, shown: View, findings: list[Finding]) -> None:
    if findings or common(ctx).output != "table":
        shown.many(findings)
    if left := [finding for finding in findings if finding.counts]:
        able = any(finding.fix for finding in left)
        hint = "volctl doctor --fix" + (" --yes" if any(finding.deletes for finding in left) else "") if able else None
        said = f"{len(left)} difference{'s' * (len(left) > 1)}: {', '.join(finding.object for finding in left[:5])}"
        raise DriftError(said + (" …" if len(left) > 5 else ""), hint=hint, details={"differences": len(left)})


def _tell_health(ctx: typer.Context, s: Session) -> None:
    """With -v: every backend with its room and what it lacks, and what confines qemu-img."""
    if not common(ctx).verbose:
        return
    from volctl.service import backends

    for state in backends.list_(s):
        room = (
            f"{size(state.free)} of {size(state.total)} free"
            if state.free is not None and state.total
            else "room unknown"
        )
        said = "; ".join(state.problems) or "well"
        stderr.line(f"backend {state.name} ({state.kind}), {state.volumes} volumes, {room}: {said}")
    stderr.line(f"qemu-img is confined by {', '.join(backends.confinement())}")

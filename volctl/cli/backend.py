"""volctl backend list, show, init, check."""

from __future__ import annotations

import typer

from volctl.cli import words
from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import confirm, session
from volctl.errors import DriftError

app = typer_app("backend", "Backends: the pools of storage.")

COLUMNS = ("name", "kind", "enabled", "total", "free", "provisioned", "volumes", "problems")


@verb(app, "list")
def list_(ctx: typer.Context) -> None:
    """List backends and their room."""
    shown = view(ctx, "BackendState", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import backends

        shown.many(backends.list_(s))


@verb(app, "show")
def show(ctx: typer.Context, name: words.Name) -> None:
    """Show a backend: its room, options, tools and what it lacks."""
    shown = view(ctx, "BackendDetails", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import backends

        shown.one(backends.show(s, name))


@verb(app, "init")
def init(ctx: typer.Context, name: words.Name) -> None:
    """Prepare once what the configuration names: a directory's marker file, a pool."""
    from volctl.service import backends

    shown = view(ctx, ("name", "done"))
    confirm(ctx, lambda s: (planned(name, backends.init_plan(s, name)), []), [])
    with session(ctx) as s:
        shown.one({"name": name, "done": backends.init(s, name)})


def planned(name: str, steps: list[str]) -> str:
    """What would be done, for a question; empty if nothing."""
    return "\n".join([f"On backend {name}:", *(f"  {step}" for step in steps)]) if steps else ""


@verb(app, "check")
def check(ctx: typer.Context) -> None:
    """Look whether every backend can be used; exit 12 if one cannot."""
    shown = view(ctx, "BackendState", ("name", "kind", "enabled", "problems"))
    with session(ctx, reads=True) as s:
        from volctl.service import backends

        states = backends.check(s)
    shown.many(states)
    if bad := [state.name for state in states if state.problems]:
        raise DriftError(f"backends with problems: {', '.join(bad)}", details={"backends_with_problems": bad})

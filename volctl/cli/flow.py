"""volctl flow list, show, retry, abandon."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import stdout, words
from volctl.cli.options import common, typer_app, verb, whole
from volctl.cli.output import View, view
from volctl.cli.session import confirm, session

app = typer_app("flow", "What commands did, task by task.")

COLUMNS = ("id", "name", "object", "phase", "started_at", "cause")
TASK_COLUMNS = ("name", "state", "started_at", "ended_at")
Id = Annotated[str, typer.Argument(metavar="ID", help="The flow's id, or the first characters of it")]


@verb(app, "list")
def list_(
    ctx: typer.Context,
    limit: words.Limit = None,
    all_: Annotated[bool, typer.Option("--all", help="Finished ones too, however old")] = False,
) -> None:
    """List flows."""
    shown, most = view(ctx, "FlowRun", COLUMNS), whole(limit, "--limit", 0)
    with session(ctx, reads=True) as s:
        from volctl.service import flows

        shown.many(flows.list_(s, limit=most, all_=all_))


@verb(app, "show")
def show(
    ctx: typer.Context, ref: Annotated[str, typer.Argument(metavar="REF", help="A flow, or a volume or snapshot")]
) -> None:
    """Show a flow and its tasks."""
    from volctl.model import to_json

    shown = view(ctx, "FlowDetails", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import flows

        found = flows.show(s, ref)
    if common(ctx).output == "table" and not common(ctx).columns:
        shown.one({key: value for key, value in to_json(found).items() if key != "tasks"})
        stdout.write("\n")
        View(common(ctx), TASK_COLUMNS, TASK_COLUMNS).many(found.tasks)
    else:
        shown.one(found)


@verb(app, "retry")
def retry(ctx: typer.Context, flow: Id) -> None:
    """Try again to undo or complete a stuck flow."""
    shown = view(ctx, "FlowRun", COLUMNS)
    with session(ctx) as s:
        from volctl.service import flows

        shown.one(flows.retry(s, flow))


@verb(app, "abandon")
def abandon(ctx: typer.Context, flow: Id) -> None:
    """Give a stuck flow up; what it left on the backend is yours to clean."""
    shown = view(ctx, "FlowRun", COLUMNS)
    confirm(ctx, lambda s: (f"This gives flow {flow} up; what it left on its backend stays there.", []), [])
    with session(ctx) as s:
        from volctl.service import flows

        shown.one(flows.abandon(s, flow))

"""volctl events."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from volctl import interrupt
from volctl.cli import stdout, words
from volctl.cli.options import typer_app, verb, whole
from volctl.cli.output import View, view
from volctl.cli.session import session

if TYPE_CHECKING:
    from volctl.model import Event

app = typer_app()

COLUMNS = ("time", "type", "object", "payload")
PAUSE = 0.5  # seconds between two looks


@verb(app, "events")
def events(
    ctx: typer.Context,
    ref: words.SomeRef = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C")] = False,
    limit: words.Limit = None,
) -> None:
    """List events, or follow them."""
    shown, most = view(ctx, "Event", COLUMNS), whole(limit, "--limit", 0)
    with session(ctx, reads=True) as s:
        from volctl.service import events

        if follow:
            followed(shown, lambda after: events.list_(s, ref, after=after, limit=most))
        else:
            shown.many(events.list_(s, ref, limit=most))


def followed(shown: View, look: Callable[[int], list[Event]]) -> None:
    """Print each event as it comes, one a line: JSON objects, or the columns. Ends by a signal."""
    last = 0
    while True:
        for event in look(last):
            last = event.id
            one_line(shown, event)
        stdout.flush()
        stdout.check_reader()
        interrupt.pause(PAUSE)


def one_line(shown: View, event: Event) -> None:
    from volctl.model import to_json

    row = to_json(event)
    if shown.given.output == "json":
        columns = shown.given.columns or tuple(row)
        stdout.write(json.dumps({column: row[column] for column in columns}) + "\n")
    elif shown.given.output == "yaml":
        shown.many([event])
    else:
        replace(shown, given=replace(shown.given, output="value")).many([event])

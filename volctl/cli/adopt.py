"""volctl adopt, release."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import words
from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import session

app = typer_app()


@verb(app, "adopt")
def adopt(
    ctx: typer.Context,
    backend: Annotated[str, typer.Argument(metavar="BACKEND", help="The backend whose directory or group it is in")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file in its directory, or an LV")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The volume's name")] = None,
    description: words.Description = None,
    property: words.Properties = None,
) -> None:
    """Make a file or an LV that is on a backend a volume, in place."""
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    with session(ctx) as s:
        from volctl.service import adopt

        pairs = words.several(property)
        shown.one(adopt.adopt(s, backend, source, name, description=description, properties=pairs))


@verb(app, "release")
def release(ctx: typer.Context, ref: words.Ref) -> None:
    """Let go of a volume: its file or LV stays, under a name of its own."""
    shown = view(ctx, ("id", "name", "backend", "path"))
    with session(ctx) as s:
        from volctl.service import adopt

        shown.one(adopt.release(s, ref))

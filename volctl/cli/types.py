"""volctl type create, list, show, set, unset, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import words
from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import session

app = typer_app("type", "Volume types: what a backend must satisfy.")

COLUMNS = ("name", "specs", "description")


@verb(app, "create")
def create(
    ctx: typer.Context, name: words.Name, spec: words.Specs = None, description: words.Description = None
) -> None:
    """Create a volume type."""
    shown = view(ctx, "VolumeType", COLUMNS)
    with session(ctx) as s:
        from volctl.service import types

        shown.one(types.create(s, name, words.several(spec), description))


@verb(app, "list")
def list_(ctx: typer.Context) -> None:
    """List volume types."""
    shown = view(ctx, "VolumeType", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import types

        shown.many(types.list_(s))


@verb(app, "show")
def show(ctx: typer.Context, names: Annotated[list[str], typer.Argument(metavar="NAME")]) -> None:
    """Show volume types in full."""
    shown = view(ctx, "VolumeType", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import types

        shown.each(names, lambda name: types.show(s, name))


@verb(app, "set")
def set_(ctx: typer.Context, name: words.Name, spec: words.Specs = None, description: words.Description = None) -> None:
    """Add or change extra specs, or the description."""
    words.something(spec, description)
    shown = view(ctx, "VolumeType", COLUMNS)
    with session(ctx) as s:
        from volctl.service import types

        shown.one(types.set_(s, name, words.several(spec), description))


@verb(app, "unset")
def unset(
    ctx: typer.Context,
    name: words.Name,
    spec: Annotated[list[str] | None, typer.Option("--spec", metavar="KEY", help="Remove it (repeatable)")] = None,
) -> None:
    """Remove extra specs."""
    words.something(spec)
    shown = view(ctx, "VolumeType", COLUMNS)
    with session(ctx) as s:
        from volctl.service import types

        shown.one(types.unset(s, name, words.several(spec)))


@verb(app, "delete")
def delete(ctx: typer.Context, names: Annotated[list[str], typer.Argument(metavar="NAME")]) -> None:
    """Delete volume types that no volume has."""
    shown = view(ctx, "VolumeType", COLUMNS)
    with session(ctx) as s:
        from volctl.service import types

        shown.each(names, lambda name: types.delete(s, name))

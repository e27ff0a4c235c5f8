"""volctl extend, set, unset, protect, unprotect."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import words
from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import session

app = typer_app()


@verb(app, "extend")
def extend(
    ctx: typer.Context,
    ref: words.Ref,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="The new size, or +SIZE to add")],
) -> None:
    """Make a volume larger."""
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    with session(ctx) as s:
        from volctl.service import volumes

        shown.one(volumes.extend(s, ref, size))


@verb(app, "set")
def set_(
    ctx: typer.Context,
    ref: words.Ref,
    name: words.NewName = None,
    description: words.Description = None,
    property: words.Properties = None,
) -> None:
    """Change the name, description or properties of a volume."""
    words.something(name, description, property)
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    with session(ctx) as s:
        from volctl.service import volumes

        shown.one(
            volumes.update(s, ref, name=name, description=description, properties=words.several(property)),
        )


@verb(app, "unset")
def unset(
    ctx: typer.Context,
    ref: words.Ref,
    name: Annotated[bool, typer.Option("--name", help="Take its name away")] = False,
    description: Annotated[bool, typer.Option("--description", help="Take its description away")] = False,
    property: words.Keys = None,
) -> None:
    """Remove the name, description or properties of a volume."""
    words.something(name, description, property)
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    with session(ctx) as s:
        from volctl.service import volumes

        shown.one(volumes.unset(s, ref, name=name, description=description, properties=words.several(property)))


@verb(app, "protect")
def protect(ctx: typer.Context, refs: words.Refs) -> None:
    """Refuse to delete volumes."""
    guard(ctx, refs, True)


@verb(app, "unprotect")
def unprotect(ctx: typer.Context, refs: words.Refs) -> None:
    """Allow to delete volumes again."""
    guard(ctx, refs, False)


def guard(ctx: typer.Context, refs: list[str], on: bool) -> None:
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    with session(ctx) as s:
        from volctl.service import volumes

        shown.each(refs, lambda ref: volumes.protect(s, ref, on))

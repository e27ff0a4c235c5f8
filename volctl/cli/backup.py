"""volctl backup-db."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import session

app = typer_app()


@verb(app, "backup-db")
def backup_db(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where the copy goes")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE")] = False,
) -> None:
    """Copy the database to a file, also while commands run."""
    shown = view(ctx, ("file", "size", "database"))
    with session(ctx, reads=True) as s:
        from volctl.service.backup import backup

        shown.one(backup(s, file, replace=force))

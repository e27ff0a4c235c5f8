"""volctl config show, check, path."""

from __future__ import annotations

import typer

from volctl.cli import stdout
from volctl.cli.options import common, typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import options
from volctl.errors import DriftError

app = typer_app("config", "The configuration.")


@verb(app, "show")
def show(ctx: typer.Context) -> None:
    """Show every key with the value that holds now."""
    from volctl.service import config

    resolved = config.show(options(ctx))
    view(ctx, tuple(resolved)).one(resolved)


@verb(app, "check")
def check(ctx: typer.Context) -> None:
    """Look for problems in the configuration; exit 12 if there are any."""
    from volctl.service import config

    shown = view(ctx, ("problems",))
    problems = config.check(options(ctx))
    if common(ctx).output in ("json", "yaml"):
        shown.one({"problems": problems})
    else:
        shown.many({"problems": problem} for problem in problems)
    if problems:
        raise DriftError(f"the configuration has {len(problems)} problem{'s' * (len(problems) > 1)}")


@verb(app, "path")
def path(ctx: typer.Context) -> None:
    """Print where the configuration is, or would be."""
    from volctl.service import config

    shown = view(ctx, ("path",))
    found = str(config.path(options(ctx)))
    if common(ctx).output in ("table", "value"):
        stdout.write(found + "\n")
    else:
        shown.one({"path": found})

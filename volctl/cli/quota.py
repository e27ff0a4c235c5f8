"""volctl quota show, set."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import words
from volctl.cli.options import typer_app, verb, whole
from volctl.cli.output import view
from volctl.cli.session import session

app = typer_app("quota", "Limits of a project and what it uses.")


def _limit(option: str, what: str) -> typer.models.OptionInfo:
    return typer.Option(option, metavar="N", help=f"{what}; -1 is unlimited")  # type: ignore[no-any-return]


@verb(app, "show")
def show(ctx: typer.Context) -> None:
    """Show the limits of a project and what it uses."""
    shown = view(ctx, "QuotaLine")
    with session(ctx, reads=True) as s:
        from volctl.service import quotas

        shown.many(quotas.show(s))


@verb(app, "set")
def set_(
    ctx: typer.Context,
    volumes: Annotated[str | None, _limit("--volumes", "How many volumes")] = None,
    gigabytes: Annotated[str | None, _limit("--gigabytes", "How many GiB in all")] = None,
    snapshots: Annotated[str | None, _limit("--snapshots", "How many snapshots")] = None,
    per_volume_gigabytes: Annotated[str | None, _limit("--per-volume-gigabytes", "GiB of one volume")] = None,
    type: words.Type = None,
) -> None:
    """Set limits of a project, or with --type of one type in it."""
    words.something(volumes, gigabytes, snapshots, per_volume_gigabytes)
    shown = view(ctx, "QuotaLine")
    with session(ctx) as s:
        from volctl.service import quotas

        lines = quotas.set_(
            s,
            volumes=whole(volumes, "--volumes", -1),
            gigabytes=whole(gigabytes, "--gigabytes", -1),
            snapshots=whole(snapshots, "--snapshots", -1),
            per_volume_gigabytes=whole(per_volume_gigabytes, "--per-volume-gigabytes", -1),
            type=type,
        )
    shown.many(lines)

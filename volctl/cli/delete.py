"""volctl delete, revert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from volctl.cli import words
from volctl.cli.human import size
from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import confirm, session

if TYPE_CHECKING:
    from volctl.service import Session

app = typer_app()


@verb(app, "delete")
def delete(
    ctx: typer.Context,
    refs: words.Refs,
    cascade: Annotated[bool, typer.Option("--cascade", help="Its snapshots too")] = False,
    force: Annotated[bool, typer.Option("--force", help="From any error status, also without its backend")] = False,
) -> None:
    """Delete volumes."""
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    with_them = " with their snapshots" if cascade else ""
    confirm(ctx, lambda s: f"This deletes{with_them}, for good:\n" + "\n".join(named(s, ref) for ref in refs))
    with session(ctx) as s:
        from volctl.service import volumes

        shown.each(refs, lambda ref: volumes.delete(s, ref, cascade=cascade, force=force))


@verb(app, "revert")
def revert(
    ctx: typer.Context,
    ref: words.Ref,
    snapshot: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="The snapshot's name or id")],
) -> None:
    """Set a volume back to a snapshot; what was written since is lost."""
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    confirm(
        ctx, lambda s: f"This sets back to snapshot {snapshot}, and what was written since is lost:\n{named(s, ref)}"
    )
    with session(ctx) as s:
        from volctl.service import volumes

        shown.one(volumes.revert(s, ref, snapshot))


def named(s: Session, ref: str) -> str:
    """A volume as a person knows it; not found is an error before anything is asked."""
    from volctl.service import volumes

    found = volumes.show(s, ref)
    return f"  volume {found.name or '-'} ({size(found.size)}, {found.id})"

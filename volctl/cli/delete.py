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
    heading = "This deletes, with their snapshots, for good:" if cascade else "This deletes, for good:"
    ids = confirm(ctx, lambda s: question(s, heading, refs), refs)
    with session(ctx) as s:
        from volctl.service import volumes

        shown.each(ids, lambda ref: volumes.delete(s, ref, cascade=cascade, force=force))


@verb(app, "revert")
def revert(
    ctx: typer.Context,
    ref: words.Ref,
    snapshot: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="The snapshot's name or id")],
) -> None:
    """Set a volume back to a snapshot; what was written since is lost."""
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    heading = f"This sets back to snapshot {snapshot}, and what was written since is lost:"
    [volume] = confirm(ctx, lambda s: question(s, heading, [ref]), [ref])
    with session(ctx) as s:
        from volctl.service import volumes

        shown.one(volumes.revert(s, volume, snapshot))


def question(s: Session, heading: str, refs: list[str]) -> tuple[str, list[str]]:
    """Volumes as a person knows them, and their ids; not found is an error before anything is asked."""
    from volctl.service import volumes

    found = [volumes.show(s, ref) for ref in refs]
    lines = [f"  volume {volume.name or '-'} ({size(volume.size)}, {volume.id})" for volume in found]
    return "\n".join([heading, *lines]), [volume.id for volume in found]

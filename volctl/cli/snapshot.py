"""volctl snapshot create, list, show, set, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from volctl.cli import words
from volctl.cli.human import size
from volctl.cli.options import typer_app, verb, whole
from volctl.cli.output import view
from volctl.cli.session import confirm, session

if TYPE_CHECKING:
    from volctl.service import Session

app = typer_app("snapshot", "Snapshots of volumes.")

COLUMNS = ("id", "name", "status", "size", "volume_id")


@verb(app, "create")
def create(
    ctx: typer.Context,
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The volume's name or id")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The snapshot's name")] = None,
    description: words.Description = None,
    property: words.Properties = None,
) -> None:
    """Take a snapshot of a volume."""
    shown = view(ctx, "Snapshot", COLUMNS)
    with session(ctx) as s:
        from volctl.service import snapshots

        shown.one(
            snapshots.create(s, volume, name, description=description, properties=words.several(property)),
        )


@verb(app, "list")
def list_(
    ctx: typer.Context,
    volume: Annotated[str | None, typer.Option("--volume", metavar="REF", help="Only those of this volume")] = None,
    status: words.Status = None,
    sort: words.Sort = "created_at",
    limit: words.Limit = None,
    all_projects: words.AllProjects = False,
) -> None:
    """List snapshots."""
    shown, most = view(ctx, "Snapshot", COLUMNS), whole(limit, "--limit", 0)
    with session(ctx, reads=True) as s:
        from volctl.service import snapshots

        found = snapshots.list_(s, volume=volume, status=status, all_projects=all_projects, sort=sort, limit=most)
    shown.many(found)


@verb(app, "show")
def show(ctx: typer.Context, refs: words.Refs) -> None:
    """Show snapshots in full."""
    shown = view(ctx, "Snapshot", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import snapshots

        shown.each(refs, lambda ref: snapshots.show(s, ref))


@verb(app, "set")
def set_(
    ctx: typer.Context,
    ref: words.Ref,
    name: words.NewName = None,
    description: words.Description = None,
    property: words.Properties = None,
) -> None:
    """Change the name, description or properties of a snapshot."""
    words.something(name, description, property)
    shown = view(ctx, "Snapshot", COLUMNS)
    with session(ctx) as s:
        from volctl.service import snapshots

        shown.one(
            snapshots.update(s, ref, name=name, description=description, properties=words.several(property)),
        )


@verb(app, "delete")
def delete(ctx: typer.Context, refs: words.Refs) -> None:
    """Delete snapshots."""
    shown = view(ctx, "Snapshot", COLUMNS)
    ids = confirm(ctx, lambda s: question(s, refs), refs)
    with session(ctx) as s:
        from volctl.service import snapshots

        shown.each(ids, lambda ref: snapshots.delete(s, ref))


def question(s: Session, refs: list[str]) -> tuple[str, list[str]]:
    """Snapshots as a person knows them, and their ids."""
    from volctl.service import snapshots

    found = [snapshots.show(s, ref) for ref in refs]
    lines = [f"  snapshot {snapshot.name or '-'} ({size(snapshot.size)}, {snapshot.id})" for snapshot in found]
    return "\n".join(["This deletes, for good:", *lines]), [snapshot.id for snapshot in found]

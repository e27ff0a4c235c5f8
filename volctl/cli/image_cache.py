"""volctl image cache list, prune."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import words
from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import session
from volctl.errors import PartialError

app = typer_app("cache", "Images that new volumes are cloned from.")

FIELDS = (
    "id", "backend", "location", "format", "key", "identity", "virtual_size", "data_size", "size", "status",
    "created_at", "used_at",
)  # fmt: skip
COLUMNS = ("id", "backend", "status", "size", "used_at", "location")


@verb(app, "list")
def list_(ctx: typer.Context, backend: words.Backend = None) -> None:
    """List cached images, least recently used first."""
    shown = view(ctx, FIELDS, COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import image_cache

        shown.many(image_cache.list_(s, backend=backend))


@verb(app, "prune")
def prune(
    ctx: typer.Context,
    backend: words.Backend = None,
    all: Annotated[bool, typer.Option("--all", help="Also what may still be of use")] = False,
) -> None:
    """Delete cached and fetched images that are of no use any more; volumes and registered images stay."""
    shown = view(ctx, FIELDS, COLUMNS)
    with session(ctx) as s:
        from volctl.service import fetch, image_cache

        removed, failed = image_cache.prune(s, backend=backend, all_=all)
        shown.many(removed)
        if backend is None and (dropped := fetch.prune(s, all_=all)):
            s.watcher.warn(f"{dropped} fetched {'file was' if dropped == 1 else 'files were'} deleted, too")
        if failed:
            raise PartialError(f"{len(failed)} of {len(removed) + len(failed)} cached images could not be deleted")

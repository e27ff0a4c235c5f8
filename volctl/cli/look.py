"""volctl list, show, path, tree, wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from volctl.cli import stdout, words
from volctl.cli.human import Row
from volctl.cli.options import common, typer_app, verb, whole
from volctl.cli.output import View, view
from volctl.cli.session import session
from volctl.cli.text import escape

if TYPE_CHECKING:
    from volctl.model import TreeNode

app = typer_app()

DEEPEST = 50_000  # Python's own limit is 1,000

NODE_FIELDS = ("kind", "id", "name", "size", "status", "children")
NODE_COLUMNS = ("name", "kind", "size", "status", "id")


@verb(app, "list")
def list_(
    ctx: typer.Context,
    status: words.Status = None,
    type: words.Type = None,
    backend: words.Backend = None,
    name: Annotated[str | None, typer.Option("--name", metavar="GLOB", help="Only names like this")] = None,
    sort: words.Sort = "created_at",
    limit: words.Limit = None,
    all_projects: words.AllProjects = False,
) -> None:
    """List volumes."""
    shown, most = view(ctx, "Volume", words.VOLUME_COLUMNS), whole(limit, "--limit", 0)
    with session(ctx, reads=True) as s:
        from volctl.service import volumes

        found = volumes.list_(
            s,
            status=status,
            type=type,
            backend=backend,
            name=name,
            sort=sort,
            limit=most,
            all_projects=all_projects,
        )
    shown.many(found)


@verb(app, "show")
def show(ctx: typer.Context, refs: words.Refs) -> None:
    """Show volumes in full."""
    shown = view(ctx, "VolumeDetails", words.VOLUME_COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import volumes

        shown.each(refs, lambda ref: volumes.show(s, ref))


@verb(app, "path")
def path(ctx: typer.Context, ref: words.Ref) -> None:
    """Print the file or device of a volume."""
    shown = view(ctx, ("path",))
    with session(ctx, reads=True) as s:
        from volctl.service import volumes

        found = os.fspath(volumes.path(s, ref))
    if common(ctx).output in ("table", "value"):
        stdout.write((escape(found) if stdout.is_terminal() else found) + "\n")
    else:
        shown.one({"path": found})


@verb(app, "tree")
def tree(ctx: typer.Context, ref: words.SomeRef = None) -> None:
    """Show volumes, their snapshots and their clones."""
    with deep():
        _tree(ctx, view(ctx, NODE_FIELDS, NODE_COLUMNS), ref)


@contextmanager
def deep() -> Iterator[None]:
    """A chain of clones, each of the one before, takes a few calls within calls for each of them."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEPEST)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _tree(ctx: typer.Context, shown: View, ref: str | None) -> None:
    with session(ctx, reads=True) as s:
        from volctl.service.tree import tree as family

        nodes = family(s, ref)
    if common(ctx).output == "table":
        shown.many(branches(nodes, indent="  "))
    elif common(ctx).output in ("value", "csv"):
        shown.many(branches(nodes, indent=""))
    elif ref is not None and len(nodes) == 1:
        shown.one(nodes[0])
    else:
        shown.many(nodes)


def branches(nodes: list[TreeNode] | tuple[TreeNode, ...], indent: str, depth: int = 0) -> Iterator[Row]:
    """Each node as a row, its name indented by its depth."""
    from volctl.model import to_json

    for node in nodes:
        row: Row = to_json(replace(node, children=()))
        yield row | {"name": indent * depth + (node.name or ("-" if indent else "")), "children": len(node.children)}
        yield from branches(node.children, indent, depth + 1)


@verb(app, "wait")
def wait(
    ctx: typer.Context,
    ref: words.Ref,
    status: Annotated[str, typer.Option("--for", metavar="STATUS", help="available, in-use, error, deleted …")] = (
        "available"
    ),
) -> None:
    """Wait until a volume has a status."""
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import volumes

        found = volumes.wait(s, ref, status)
    if found is not None:
        shown.one(found)

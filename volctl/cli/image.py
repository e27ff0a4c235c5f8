"""volctl image add, list, show, check, refresh, save, delete, cache."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import image_cache, words
from volctl.cli.options import typer_app, verb
from volctl.cli.output import view
from volctl.cli.session import session
from volctl.errors import UsageError

app = typer_app("image", "Registered disk images.")
app.add_typer(image_cache.app)

COLUMNS = ("id", "name", "status", "format", "virtual_size", "location")
SAVED = ("path", "format", "virtual_size", "size", "source")
STDOUT = 1
CHECKED = ("path", "format", "virtual_size", "size", "data_size", "sha256", "packed")


@verb(app, "add")
def add(
    ctx: typer.Context,
    what: Annotated[list[str], typer.Argument(metavar="[NAME] LOCATION", help="A file, a URL, or volume:REF")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the file into the image store")] = False,
    image_format: words.ImageFormat = "auto",
    checksum: words.Checksum = None,
    signature: words.Signature = None,
    keyring: words.Keyring = None,
    min_disk: Annotated[str | None, typer.Option("--min-disk", metavar="SIZE", help="No smaller volumes")] = None,
    property: words.Properties = None,
    allow_device: words.AllowDevice = False,
) -> None:
    """Register an image."""
    shown, (name, location) = view(ctx, "Image", COLUMNS), named(what)
    with session(ctx) as s:
        from volctl.service import images

        added = images.add(
            s,
            name,
            location,
            copy=copy,
            image_format=image_format,
            checksum=checksum,
            signature=signature,
            keyring=keyring,
            min_disk=min_disk,
            properties=words.several(property),
            allow_device=allow_device,
        )
        shown.one(added)


def named(what: list[str]) -> tuple[str | None, str]:
    """[NAME] LOCATION as a pair."""
    if len(what) > 2:
        raise UsageError("image add takes [NAME] LOCATION", hint="see volctl image add --help")
    return (what[0] if len(what) == 2 else None), what[-1]


@verb(app, "list")
def list_(ctx: typer.Context) -> None:
    """List images."""
    shown = view(ctx, "Image", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import images

        shown.many(images.list_(s))


@verb(app, "show")
def show(ctx: typer.Context, refs: words.Refs) -> None:
    """Show images in full."""
    shown = view(ctx, "Image", COLUMNS)
    with session(ctx, reads=True) as s:
        from volctl.service import images

        shown.each(refs, lambda ref: images.show(s, ref))


@verb(app, "check")
def check(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file")],
    image_format: words.ImageFormat = "auto",
    checksum: words.Checksum = None,
    signature: words.Signature = None,
    keyring: words.Keyring = None,
) -> None:
    """Check that a file is a safe and whole image."""
    shown = view(ctx, CHECKED)
    with session(ctx, reads=True) as s:
        from volctl.service import images

        found = images.check(
            s, path, image_format=image_format, checksum=checksum, signature=signature, keyring=keyring
        )
        shown.one(found)


@verb(app, "refresh")
def refresh(ctx: typer.Context, refs: words.Refs) -> None:
    """Take images as they are now: their files, or what their URLs hold."""
    shown = view(ctx, "Image", COLUMNS)
    with session(ctx) as s:
        from volctl.service import images

        shown.each(refs, lambda ref: images.refresh(s, ref))


@verb(app, "save")
def save(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="VOLUME|SNAPSHOT", help="Its name or id")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="A new file, or - for standard output")],
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="raw or qcow2")] = "raw",
    compress: Annotated[bool, typer.Option("--compress", help="Compress the qcow2")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a FILE that is there, once the new one is whole")
    ] = False,
) -> None:
    """Make an image file of a volume or snapshot."""
    shown = view(ctx, SAVED)
    with session(ctx) as s:
        from volctl.service import images

        target = STDOUT if file == "-" else file
        made = images.save(s, ref, target, format=format, compress=compress, replace=force)
        if target != STDOUT:
            shown.one(made)


@verb(app, "delete")
def delete(ctx: typer.Context, refs: words.Refs) -> None:
    """Forget images; a file that was not copied stays where it is."""
    shown = view(ctx, "Image", COLUMNS)
    with session(ctx) as s:
        from volctl.service import images

        shown.each(refs, lambda ref: images.delete(s, ref))

"""volctl attach, detach."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.cli import stdout, words
from volctl.cli.options import common, typer_app, verb, whole
from volctl.cli.output import view
from volctl.cli.session import session
from volctl.errors import UsageError

app = typer_app()

COLUMNS = (*words.VOLUME_COLUMNS, "attachments")

ReadOnly = Annotated[bool, typer.Option("--read-only", help="Nobody can write to the device")]
SectorSize = Annotated[str | None, typer.Option("--sector-size", metavar="BYTES", help="512 or 4096")]
All = Annotated[bool, typer.Option("--all", help="Every volume that was attached before a reboot, as it was")]


@verb(app, "attach")
def attach(
    ctx: typer.Context,
    ref: words.SomeRef = None,
    read_only: ReadOnly = False,
    sector_size: SectorSize = None,
    every: All = False,
) -> None:
    """Make a volume a block device and print it."""
    if every == (ref is not None) or (every and (read_only or sector_size)):
        raise UsageError("attach takes a volume, or --all and nothing else")
    if ref is None:
        attach_all(ctx)
    else:
        attach_one(ctx, ref, read_only, whole(sector_size, "--sector-size"))


def attach_one(ctx: typer.Context, ref: str, read_only: bool, sector_size: int | None) -> None:
    """The device's path alone, unless columns or a format with names were asked for."""
    shown = view(ctx, "Volume", COLUMNS)
    with session(ctx) as s:
        from volctl.service import attach

        volume = attach.attach(s, ref, read_only=read_only, sector_size=sector_size)
    if common(ctx).output in ("table", "value") and not common(ctx).columns:
        stdout.write(f"{volume.attachments[0].device}\n")
    else:
        shown.one(volume)


def attach_all(ctx: typer.Context) -> None:
    """Names and devices, which fit a terminal side by side."""
    shown = view(ctx, "Volume", ("name", "status", "attachments"))
    with session(ctx) as s:
        from volctl.service import attach

        shown.each(attach.remembered(s), lambda volume_id: attach.again(s, volume_id), several=True)


@verb(app, "detach")
def detach(ctx: typer.Context, ref: words.Ref) -> None:
    """Take a volume's block device away; refused while something has it open."""
    shown = view(ctx, "Volume", COLUMNS)
    with session(ctx) as s:
        from volctl.service import attach

        shown.one(attach.detach(s, ref))

"""volctl create, explain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from volctl.cli import stdout, words
from volctl.cli.human import Row, size, verdict_text
from volctl.cli.options import common, typer_app, verb, whole
from volctl.cli.output import View, view
from volctl.cli.session import session
from volctl.errors import NoBackendError, UsageError

if TYPE_CHECKING:
    from volctl.model import CreateRequest

app = typer_app()

MOST = 100_000  # volumes of one --count: all their names are made first
Count = Annotated[str | None, typer.Option("--count", metavar="N", help="Make NAME-1 … NAME-N")]
Attempts = Annotated[str | None, typer.Option("--max-attempts", metavar="N", help="Backends to try; 1: no other")]


@verb(app, "create")
def create(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Its name; none is allowed")] = None,
    size: words.Size = None,
    from_image: words.FromImage = None,
    from_snapshot: words.FromSnapshot = None,
    from_volume: words.FromVolume = None,
    image_format: words.ImageFormat = "auto",
    checksum: words.Checksum = None,
    signature: words.Signature = None,
    keyring: words.Keyring = None,
    allow_device: words.AllowDevice = False,
    type: words.Type = None,
    backend: words.Backend = None,
    availability_zone: words.Zone = None,
    hint: words.Hints = None,
    property: words.Properties = None,
    description: words.Description = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Success if the same one is there")] = False,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Only show which backend it would get")] = False,
    attach: Annotated[bool, typer.Option("--attach", help="And make it a block device")] = False,
    max_attempts: Attempts = None,
    count: Count = None,
) -> None:
    """Create a volume, or several."""
    from volctl.model import CreateRequest

    many = counted(count)
    wanted = CreateRequest(
        name=name,
        size=size,
        from_image=from_image,
        from_snapshot=from_snapshot,
        from_volume=from_volume,
        image_format=image_format,
        checksum=checksum,
        signature=signature,
        keyring=keyring,
        allow_device=allow_device,
        type=type,
        backend=backend,
        availability_zone=availability_zone,
        hints=words.several(hint),
        properties=words.several(property),
        description=description,
        if_absent=if_absent,
        max_attempts=whole(max_attempts, "--max-attempts"),
    )
    explained(ctx, wanted, many) if dry_run else created(ctx, wanted, many, attach)


def counted(count: str | None) -> int:
    many = whole(count, "--count") or 1
    if many > MOST:
        raise UsageError(f"--count takes at most {MOST}, not {many}")
    return many


@verb(app, "explain")
def explain(
    ctx: typer.Context,
    size: words.Size = None,
    from_image: words.FromImage = None,
    from_snapshot: words.FromSnapshot = None,
    from_volume: words.FromVolume = None,
    image_format: words.ImageFormat = "auto",
    allow_device: words.AllowDevice = False,
    type: words.Type = None,
    backend: words.Backend = None,
    availability_zone: words.Zone = None,
    hint: words.Hints = None,
) -> None:
    """Show which backend a volume would get, and why."""
    from volctl.model import CreateRequest

    wanted = CreateRequest(
        size=size,
        from_image=from_image,
        from_snapshot=from_snapshot,
        from_volume=from_volume,
        image_format=image_format,
        allow_device=allow_device,
        type=type,
        backend=backend,
        availability_zone=availability_zone,
        hints=words.several(hint),
    )
    explained(ctx, wanted)


def created(ctx: typer.Context, wanted: CreateRequest, count: int, attached: bool) -> None:
    """One volume, or NAME-1 … NAME-N; with --quiet their ids only."""
    shown = view(ctx, "Volume", words.VOLUME_COLUMNS)
    if common(ctx).quiet and not common(ctx).columns and common(ctx).output == "table":
        shown = replace(shown, given=replace(shown.given, output="value", columns=("id",)))
    with session(ctx, flows=count == 1) as s:
        if attached:
            from volctl.service.attach import create_attached as make
        else:
            from volctl.service.creation import create as make
        shown.each(names(wanted.name, count), lambda name: make(s, named(wanted, name)))


def names(name: str | None, count: int) -> list[str]:
    """What the volumes are called; empty for one without a name."""
    if count == 1 or name is None:
        return [name or ""] * count
    return [f"{name}-{number}" for number in range(1, count + 1)]


def named(wanted: CreateRequest, name: str) -> CreateRequest:
    """One of several; an empty name is not the same as none."""
    return wanted if wanted.name is None else replace(wanted, name=name)


def explained(ctx: typer.Context, wanted: CreateRequest, count: int = 1) -> None:
    """Print the scheduler's verdicts; `NoBackendError` if no backend passed."""
    from volctl.model import to_json

    shown = view(ctx, "Explanation")
    with session(ctx, reads=True) as s:
        from volctl.service import creation

        every = enumerate(names(wanted.name, count), 1)
        found = [creation.plan(s, named(wanted, name), number) for number, name in every]
    if common(ctx).output == "table" and not common(ctx).columns:
        for explanation in found:
            verdicts(ctx, to_json(explanation))
    elif count == 1:
        shown.one(found[0])
    else:
        shown.many(found)
    if any(explanation.chosen is None for explanation in found):
        raise NoBackendError("no backend passes", hint="volctl backend list shows what there is")


def verdicts(ctx: typer.Context, explanation: Row) -> None:
    """For a person: what was asked for, then a row for each backend."""
    kind = f" of type {explanation['type']}" if explanation["type"] else ""
    stdout.write(f"{size(explanation['size'])}{kind}: {explanation['chosen'] or 'no backend'}\n")
    rows = [{"backend": v["name"], "verdict": verdict_text(v, explanation["chosen"])} for v in explanation["backends"]]
    View(common(ctx), ("backend", "verdict"), ("backend", "verdict")).many(rows)

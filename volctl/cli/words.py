"""The parameters that several verbs share, as annotations."""

from __future__ import annotations

from typing import Annotated

import typer

from volctl.errors import UsageError

Ref = Annotated[str, typer.Argument(metavar="REF", help="Name, id, or at least 6 of the id's first characters")]
Refs = Annotated[list[str], typer.Argument(metavar="REF", help="Names or ids")]
SomeRef = Annotated[str | None, typer.Argument(metavar="REF", help="Name or id")]
Name = Annotated[str, typer.Argument(metavar="NAME")]
NewName = Annotated[str | None, typer.Option("--name", metavar="NAME", help="The new name")]
Description = Annotated[str | None, typer.Option("--description", metavar="TEXT", help="Free text")]
Properties = Annotated[list[str] | None, typer.Option("--property", metavar="K=V", help="A property (repeatable)")]
Keys = Annotated[list[str] | None, typer.Option("--property", metavar="KEY", help="Remove it (repeatable)")]
Specs = Annotated[list[str] | None, typer.Option("--spec", metavar="K=V", help="An extra spec (repeatable)")]
Size = Annotated[str | None, typer.Option("--size", metavar="SIZE", help="10 (GiB), 512M, 1.5T, 500MB")]
FromImage = Annotated[
    str | None, typer.Option("--from-image", metavar="X", help="A registered image, a file, a URL, or volume:REF")
]
FromSnapshot = Annotated[str | None, typer.Option("--from-snapshot", metavar="REF", help="A snapshot")]
FromVolume = Annotated[str | None, typer.Option("--from-volume", metavar="REF", help="Another volume")]
ImageFormat = Annotated[
    str, typer.Option("--image-format", metavar="FORMAT", help="auto, raw, qcow2, vmdk, vdi, vhd or vhdx")
]
Checksum = Annotated[
    str | None,
    typer.Option("--checksum", metavar="SUM", help="sha256:HEX or sha512:HEX, or a file or URL that lists it"),
]
Signature = Annotated[
    str | None,
    typer.Option("--signature", metavar="FILE|URL", help="Of what --checksum lists, else of the image"),
]
Keyring = Annotated[str | None, typer.Option("--keyring", metavar="FILE", help="The keys that may have signed it")]
AllowDevice = Annotated[bool, typer.Option("--allow-device", help="The image may be a block device")]
Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="A volume type")]
Backend = Annotated[str | None, typer.Option("--backend", metavar="NAME", help="A backend")]
Zone = Annotated[str | None, typer.Option("--availability-zone", metavar="ZONE", help="An availability zone")]
Hints = Annotated[
    list[str] | None,
    typer.Option("--hint", metavar="K=REF", help="same-backend=REF or different-backend=REF (repeatable)"),
]
Status = Annotated[str | None, typer.Option("--status", metavar="STATUS", help="Only those with this status")]
Sort = Annotated[str, typer.Option("--sort", metavar="KEY[:desc]", help="The order")]
Limit = Annotated[str | None, typer.Option("--limit", metavar="N", help="At most so many")]
AllProjects = Annotated[bool, typer.Option("--all-projects", help="Of every project")]

VOLUME_COLUMNS = ("id", "name", "status", "size", "type", "backend")


def several(values: list[str] | None) -> tuple[str, ...]:
    return tuple(values or ())


def something(*given: object) -> None:
    """Refuse a change that changes nothing."""
    if not any(value not in (None, False, (), []) for value in given):
        raise UsageError("nothing to change", hint="give at least one option; see --help")

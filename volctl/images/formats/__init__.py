"""The disk image formats: `identify` names one by its content, `inspect` reads its tables.

One module per format that volctl takes, each with `inspect(reader) -> Layout`, written from the
format's specification. They run before any program of QEMU sees the file, since a VMDK descriptor
or a backing file makes `qemu-img` open whatever host file it names.
"""

from __future__ import annotations

import importlib
from typing import cast

from volctl.images.formats.layout import Inspect, Layout
from volctl.images.reader import Reader

QEMU_DRIVER = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx"}
"""Our name of each format that is taken, and the driver that qemu-img knows it by."""


def inspect(format: str, reader: Reader) -> Layout:
    """Read the tables of a format other than raw; raises what makes the image refused."""
    module = importlib.import_module(f"volctl.images.formats.{format}")
    return cast(Inspect, module.inspect)(reader)


__all__ = ["QEMU_DRIVER", "Layout", "inspect"]

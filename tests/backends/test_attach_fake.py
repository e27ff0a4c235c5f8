from __future__ import annotations

import os
from pathlib import Path

from backends.fake import Fake
from tests.backends.attaching import Attaching
from volctl.backend import Backend, Setup
from volctl.model import Object


class TestFake(Attaching):
    def backend(self, directory: Path, database: str) -> Backend:
        directory.mkdir()
        return Fake(Setup("fake", {"directory": str(directory)}, database))

    def reboot(self, device: str) -> None:
        os.unlink(device)

    def devices(self, backend: Backend, volume: Object) -> int:
        return len(list(backend.path(volume).parent.glob(f"device-*{volume.id}")))

"""A backend that somebody else ships, found by its entry point and held to the same contract."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.conformance import Conformance
from volctl.backend import Backend, Setup
from volctl.errors import ConfigError
from volctl.kinds import load


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is on the path, as after `pip install`."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "thirdparty")
    yield
    Backend.kinds.pop("shelf", None)
    sys.modules.pop("acme_shelf", None)


class TestShelf(Conformance):
    stride = 3
    carries = False

    def backend(self, directory: Path, database: str) -> Backend:
        return load("shelf")(Setup("shelf", {"directory": str(directory)}, database))


def test_it_is_loaded_by_its_entry_point() -> None:
    assert load("shelf").__module__ == "acme_shelf"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'shelve'"):
        load("shelve")

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.fake import Fake
from tests.backends.conformance import SIZE, Conformance, new, quiet
from volctl.backend import Backend, Setup
from volctl.errors import AccessError, BackendError, ConfigError, NoSpaceError
from volctl.model import GiB, MiB


class TestFake(Conformance):
    def backend(self, directory: Path, database: str) -> Backend:
        return Fake(Setup("fake", {"directory": str(directory)}, database))

    def others(self, pool: Backend) -> int:
        return 2  # the marker and the log of calls


def make(directory: Path, **options: object) -> Fake:
    pool = Fake(Setup("fake", {"directory": str(directory), **options}, "db"))
    pool.init()
    return pool


def test_failures_are_ordered_by_option(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="create was ordered to fail"):
        make(tmp_path, fail=["create"]).create(new(), MiB)
    make(tmp_path).create(new(), MiB)


def test_failures_are_ordered_by_file_and_counted(tmp_path: Path) -> None:
    pool = make(tmp_path)
    orders = {
        "create": {"error": "permission", "message": "no", "times": 2},
        "delete": "stays",
        "stats": {"pause": 0.01},
    }
    (tmp_path / "fail").write_text(json.dumps(orders))
    for _ in range(2):
        with pytest.raises(AccessError, match=r"^no$"):
            pool.create(new(), MiB)
    pool.create(new(), MiB)
    with pytest.raises(BackendError, match=r"^stays$"):
        pool.delete(new())
    pool.stats()


def test_a_failure_may_come_after_the_work(tmp_path: Path) -> None:
    pool, volume = make(tmp_path), new()
    (tmp_path / "fail").write_text(json.dumps({"create": {"error": "no_space", "after": True}}))
    with pytest.raises(NoSpaceError):
        pool.create(volume, MiB)
    assert pool.inspect(volume)


def test_calls_are_logged(tmp_path: Path) -> None:
    pool, volume, copy = make(tmp_path), new(), new()
    pool.create(volume, MiB)
    pool.clone(volume, copy, MiB, quiet)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [
        {"call": "create", "objects": [volume.name]},
        {"call": "clone", "objects": [volume.name, copy.name]},
    ]


def test_stats_come_from_the_capacity_and_the_file(tmp_path: Path) -> None:
    pool = make(tmp_path, capacity=GiB, provisioning="thick")
    pool.create(new(), SIZE)
    assert pool.stats().free == GiB - SIZE
    (tmp_path / "stats").write_text('{"free": null, "total": Infinity, "data_percent": 96.5}')
    stats = pool.stats()
    assert (stats.free, stats.total, stats.data_percent) == (None, float("inf"), 96.5)


def test_a_full_thick_pool_refuses(tmp_path: Path) -> None:
    pool, volume = make(tmp_path, capacity=2 * SIZE, provisioning="thick"), new()
    for _ in range(2):
        pool.create(volume, SIZE)
    pool.clone(volume, new(), SIZE, quiet)
    with pytest.raises(NoSpaceError):
        pool.create(new(), MiB)
    with pytest.raises(NoSpaceError):
        pool.extend(volume, SIZE + MiB)


def test_a_wrong_option_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, capasity=1)
    assert caught.value.hint == "did you mean capacity?"

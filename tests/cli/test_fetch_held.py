"""Copies of what a URL holds: whose they are, and what another command does to them at the same moment."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, MiB, make_image
from tests.conftest import Volctl
from tests.web import Fault, Web, serving
from volctl.flows.context import Context
from volctl.images.gate import CheckedImage
from volctl.model import Image
from volctl.service import fetch
from volctl.service.session import Session

ONE, TWO, THREE = b"1" * MiB, b"2" * MiB, b"3" * MiB


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


def stored(cli: Cli) -> list[str]:
    return sorted(os.listdir(cli.state / "images"))


def sql(cli: Cli, *statements: str) -> None:
    with closing(sqlite3.connect(cli.state / "volctl.db")) as database, database:
        for statement in statements:
            database.execute(statement)


def test_the_declared_format_is_asked_of_a_copy_that_is_held(cli: Cli, web: Web) -> None:
    url = web.put("/disk", make_image(cli.home / "disk.qcow2", ONE, MiB).read_bytes())
    cli("image", "add", url)
    cli.error(7, "image_format", "image", "add", "x", url, "--image-format", "raw")
    cli.error(7, "image_format", "create", "v", "-n", "--from-image", url, "--image-format", "raw")
    cli.error(2, "usage", "image", "add", "x", url, "--image-format", "nothere")
    assert cli.json("image", "add", "x", url, "--image-format", "qcow2")["format"] == "qcow2"
    assert web.bodies("/disk") == 1


def test_registered_without_a_name(cli: Cli, web: Web) -> None:
    """It has what was asked for, and is not dropped like what was fetched for a create."""
    url = web.put("/disk.raw", ONE)
    cli.configure("[image_cache]\nmax_count = 0\n")
    cli.volume("v", "--from-image", url)
    made = cli.json("image", "add", url, "--min-disk", "4M", "--property", "a=b")
    assert (made["name"], made["min_disk"], made["properties"]) == (None, 4 * MiB, {"a": "b"})
    assert cli.events(made["id"]) == ["image.fetch", "image.add"]
    for words in ([], ["--min-disk", "4M", "--property", "a=b"]):
        assert cli.json("image", "add", url, *words) == made
    cli("image", "cache", "prune", "--all")
    assert cli.json("image", "list") == [made] and stored(cli) == [made["id"]]
    named = cli.json("image", "add", "named", url)
    other = cli.json("image", "add", url, "--min-disk", "8M")
    assert (named["min_disk"], other["min_disk"]) == (0, 8 * MiB)
    assert stored(cli) == sorted(image["id"] for image in (made, named, other))
    web.put("/disk.raw", TWO, etag='"two"')
    cli.volume("w", "--from-image", url)
    assert cli.json("image", "show", made["id"]) == made
    assert Path(made["location"]).read_bytes() == ONE
    assert cli("doctor").status == 0


def test_refresh_copies_what_is_registered_without_a_name(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", ONE)
    cli("image", "add", "i", url)
    web.put("/disk.raw", TWO, etag='"two"')
    other = cli.json("image", "add", url)
    cli("image", "refresh", "i")
    assert [Path(cli.json("image", "show", ref)["location"]).read_bytes() for ref in ("i", other["id"])] == [TWO, TWO]


def test_a_database_from_before_images_were_registered(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", ONE)
    cli.volume("v", "--from-image", url)
    sql(cli, "ALTER TABLE images DROP COLUMN registered", "PRAGMA user_version = 6")
    made = cli.json("image", "add", url)
    cli("image", "cache", "prune", "--all")
    assert stored(cli) == [made["id"]]


def test_a_copy_that_was_used_in_the_future_is_asked_for(cli: Cli, web: Web) -> None:
    """The clock was wrong once."""
    url = web.put("/disk.raw", ONE)
    cli.volume("v", "--from-image", url)
    sql(cli, "UPDATE images SET used_at = '2999-01-01T00:00:00.000000Z'")
    web.put("/disk.raw", TWO, etag='"two"')
    cli.volume("w", "--from-image", url)
    assert cli.file("w").read_bytes() == TWO


def dropped_after(volctl: Volctl, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Another command runs between the look at what there is to be dropped, and the drop."""
    drop = fetch._drop

    def late(*args: Any) -> bool:
        volctl(*words)
        return drop(*args)

    monkeypatch.setattr(fetch, "_drop", late)


def test_pruning_leaves_what_was_given_a_name_just_now(
    cli: Cli, volctl: Volctl, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.put("/disk.raw", ONE)
    cli.volume("v", "--from-image", url)
    dropped_after(volctl, monkeypatch, "image", "add", "kept", url)
    assert "deleted" not in cli("image", "cache", "prune", "--all").err
    assert stored(cli) == [cli.json("image", "show", "kept")["id"]]


def test_pruning_leaves_what_became_whole_just_now(
    cli: Cli, volctl: Volctl, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.configure("[images]\nfetch_attempts = 1\n")
    url = web.put("/disk.raw", ONE, Fault(cut=300_000))
    cli.error(8, "backend", "create", "v", "--from-image", url)
    dropped_after(volctl, monkeypatch, "image", "add", "kept", url)
    cli("image", "cache", "prune", "--all")
    assert stored(cli) == [cli.json("image", "show", "kept")["id"]]


def test_two_names_of_one_copy_at_once(cli: Cli, volctl: Volctl, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has a copy of its own."""
    url = web.put("/disk.raw", ONE)
    image_of = fetch.image_of

    @contextmanager
    def late(session: Session, wanted: fetch.Wanted) -> Iterator[Image]:
        with image_of(session, wanted) as found:
            volctl("image", "add", "first", url, "--min-disk", "4M")
            yield found

    monkeypatch.setattr(fetch, "image_of", late)
    second = cli.json("image", "add", "second", url)
    first = cli.json("image", "show", "first")
    assert (first["min_disk"], second["min_disk"]) == (4 * MiB, 0)
    assert stored(cli) == sorted([first["id"], second["id"]])


def test_two_refreshes_at_once(cli: Cli, volctl: Volctl, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one read is not told of the file that the other put in its place."""
    url = web.put("/disk.raw", ONE)
    before = cli.json("image", "add", "i", url)
    web.put("/disk.raw", TWO, etag='"two"')
    image, others = Context.image, []

    def late(*args: Any, **words: Any) -> CheckedImage:
        found = image(*args, **words)
        web.put("/disk.raw", THREE, etag='"three"')
        others.append(volctl("image", "refresh", "i", "--lock-timeout", "0", status=None).status)
        return found

    monkeypatch.setattr(Context, "image", late)
    after = cli.json("image", "refresh", "i")
    assert others == [10]
    assert after["origin"] == url and after["sha256"] not in (None, before["sha256"])

"""REF: a name within the project, an id or a prefix of one everywhere; and projects."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing

import pytest

from tests.cli.conftest import Cli, MiB, make_image


def test_name_id_and_prefix(cli: Cli) -> None:
    made = cli.volume("v")
    for ref in ("v", made["id"], made["id"].upper(), made["id"][:6], made["id"][:13]):
        assert cli.json("show", ref)["id"] == made["id"]
    for ref in (made["id"][:5], made["id"] + "0", "V", made["id"].replace("-", "")[:12], "nothere", "*", ""):
        error = cli.refused(4, "not_found", "show", ref)
        assert repr(ref) in error["message"]


def test_an_exact_name_comes_first(cli: Cli) -> None:
    first = cli.volume("v")
    other = cli.volume(first["id"][:8])
    assert cli.json("show", first["id"][:8])["id"] == other["id"]
    assert cli.json("show", first["id"])["id"] == first["id"]


def test_an_ambiguous_prefix_names_the_candidates(cli: Cli) -> None:
    ids = {cli.volume(name)["id"]: name for name in ("a", "b")}
    for volume_id in ids:
        rename(cli, volume_id, "abcdef" + volume_id[6:])
    error = cli.refused(4, "ambiguous", "show", "abcdef")
    for volume_id, name in ids.items():
        assert "abcdef" + volume_id[6:] in error["message"]
        assert name in error["message"]
    cli.refused(4, "ambiguous", "extend", "ABCDEF", "2M")
    cli.refused(4, "ambiguous", "delete", "abcdef", "--yes")
    cli.refused(4, "ambiguous", "create", "c", "--from-volume", "abcdef")


def rename(cli: Cli, volume_id: str, new: str) -> None:
    """Give a volume the id that a test needs."""
    (cli.pool / f"volume-{volume_id}").rename(cli.pool / f"volume-{new}")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        db.execute("UPDATE volumes SET id = ? WHERE id = ?", (new, volume_id))


def test_snapshots_and_images(cli: Cli) -> None:
    cli.volume("v")
    snapshot = cli.json("snapshot", "create", "v", "s")
    image = cli.json("image", "add", "i", make_image(cli.home / "i.raw", b"x", MiB, "raw"))
    for verb, found in (("snapshot", snapshot), ("image", image)):
        for ref in (found["name"], found["id"], found["id"][:8]):
            assert cli.json(verb, "show", ref) == found
        cli.refused(4, "not_found", verb, "show", "v")
    for ref in (image["id"], image["id"][:8], "i"):
        assert cli.json("create", "--from-image", ref, "-n")["size"] == MiB
    assert cli.json("create", "--from-image", f"volume:{'v'}", "-n")["size"] == MiB


def test_one_object_or_an_array(cli: Cli) -> None:
    cli.volume("a")
    cli.volume("b")
    assert isinstance(cli.json("show", "a"), dict)
    assert [volume["name"] for volume in cli.json("show", "b", "a")] == ["b", "a"]
    assert [volume["protected"] for volume in cli.json("protect", "a", "b")] == [True, True]
    ran = cli("show", "a", "nothere", "b", "--json", status=3)
    assert [volume["name"] for volume in ran.json()] == ["a", "b"]
    assert "there is no volume 'nothere'" in ran.err


def test_projects(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = cli.volume("v")
    theirs = cli.volume("v", "--size", "2M", "--project", "other")
    assert theirs["project"] == "other"
    assert [volume["id"] for volume in cli.json("list")] == [mine["id"]]
    assert [volume["id"] for volume in cli.json("list", "--project", "other")] == [theirs["id"]]
    assert len(cli.json("list", "--all-projects")) == 2
    monkeypatch.setenv("VOLCTL_PROJECT", "other")
    assert cli.json("show", "v")["id"] == theirs["id"]
    assert cli.json("show", "v", "--project", "default")["id"] == mine["id"]
    assert cli.json("show", mine["id"])["id"] == mine["id"]
    cli.volume("only")
    monkeypatch.delenv("VOLCTL_PROJECT")
    cli.refused(4, "not_found", "show", "only")
    assert cli.quota()["volumes"]["in_use"] == 1


def test_names_are_unique_within_a_project(cli: Cli) -> None:
    cli.volume("v")
    other = cli.volume("w")
    cli.refused(5, "exists", "set", "w", "--name", "v")
    cli.json("set", "v", "--name", "v")
    cli("snapshot", "create", "v", "v")  # names of snapshots are their own
    cli.refused(5, "exists", "snapshot", "create", "w", "v")
    cli("snapshot", "create", "w", "w")
    cli.refused(5, "exists", "snapshot", "set", "w", "--name", "v")
    image = make_image(cli.home / "i.raw", b"x", MiB, "raw")
    cli("image", "add", "i", image)
    cli.refused(5, "exists", "image", "add", "i", image)
    cli("type", "create", "t")
    cli.refused(5, "exists", "type", "create", "t")
    cli("delete", "w", "--yes", "--cascade")
    assert cli.volume("w")["id"] != other["id"]


def test_set_and_unset(cli: Cli) -> None:
    cli.volume("v", "--size", "1M", "--property", "a=1", "--property", "b=2")
    changed = cli.json("set", "v", "--name", "w", "--description", "text", "--property", "b=3", "--property", "c=x=y")
    assert (changed["name"], changed["description"]) == ("w", "text")
    assert changed["properties"] == {"a": "1", "b": "3", "c": "x=y"}
    left = cli.json("unset", "w", "--property", "a", "--property", "nothere", "--description")
    assert (left["description"], left["properties"]) == (None, {"b": "3", "c": "x=y"})
    assert cli.json("unset", "w", "--name")["name"] is None
    assert cli.json("show", left["id"]) == cli.json("show", left["id"][:8])


def test_list(cli: Cli) -> None:
    cli("type", "create", "gold")
    for number, size in enumerate(("3M", "1M", "2M")):
        cli.volume(f"v{number}", "--size", size, *(("--type", "gold") if number else ()))
    cli.volume("other")

    def names(*args: str) -> list[str]:
        return [volume["name"] for volume in cli.json("list", *args)]

    assert names() == ["v0", "v1", "v2", "other"]
    assert names("--name", "v*") == ["v0", "v1", "v2"]
    assert names("--name", "v[12]", "--sort", "name:desc") == ["v2", "v1"]
    assert names("--sort", "size:desc", "--limit", "2") == ["v0", "v2"]
    assert names("--limit", "0") == []
    assert names("--type", "gold") == ["v1", "v2"]
    assert names("--backend", "local", "--status", "available", "--limit", "1") == ["v0"]
    assert names("--backend", "nope") == names("--status", "error") == names("--type", "nope") == []
    for words in (["--sort", "nope"], ["--sort", "size:up"], ["--status", "nope"]):
        cli.refused(2, "usage", "list", *words)
    cli.error(2, "usage", "list", "--limit", "9" * 20)


def test_tree(cli: Cli) -> None:
    cli.volume("root")
    cli("snapshot", "create", "root", "s")
    cli.volume("leaf", "--from-snapshot", "s")
    cli.volume("twig", "--from-volume", "leaf")
    cli.volume("alone")
    nodes = cli.json("tree")
    assert [node["name"] for node in nodes] == ["root", "alone"]
    assert list(nodes[0]) == ["kind", "id", "name", "size", "status", "children"]
    (snapshot,) = nodes[0]["children"]
    (leaf,) = snapshot["children"]
    assert (snapshot["kind"], leaf["name"], leaf["children"][0]["name"]) == ("snapshot", "leaf", "twig")
    assert cli.json("tree", "leaf") == leaf
    assert "twig" in cli("tree", "root").out
    assert "alone" not in cli("tree", "root").out


def test_path(cli: Cli) -> None:
    made = cli.volume("v")
    file = cli.pool / f"volume-{made['id']}"
    assert cli("path", "v").out == f"{file}\n"
    assert cli.json("path", "v") == {"path": str(file)}


def test_wait(cli: Cli) -> None:
    cli.volume("v")
    assert cli.json("wait", "v")["status"] == "available"
    cli.refused(2, "usage", "wait", "v", "--for", "nope")
    cli.refused(124, "timeout", "wait", "v", "--for", "error", "--timeout", "200ms")
    cli.refused(4, "not_found", "wait", "nothere")


def test_a_long_chain_of_clones_is_shown(cli: Cli) -> None:
    first = cli.volume("v0")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(volumes)")]
        for number in range(1, 600):
            own = {"id": f"'{uuid.UUID(int=number)}'", "name": f"'v{number}'", "source_kind": "'volume'"}
            own["source_id"] = f"'{uuid.UUID(int=number - 1) if number > 1 else first['id']}'"
            values = ", ".join(own.get(column, f'"{column}"') for column in columns)
            db.execute(f"INSERT INTO volumes SELECT {values} FROM volumes WHERE name = 'v0'")
    assert "v599" in cli("tree").out and "v599" in cli("tree", "--json").out


def test_what_is_deleted_is_not_protected_any_more(cli: Cli) -> None:
    cli.volume("v")
    with closing(sqlite3.connect(cli.state / "volctl.db")) as db, db:
        db.execute("UPDATE volumes SET status = 'deleting'")
    assert "being deleted" in cli.error(5, "conflict", "protect", "v")["message"]


def test_to_wait_for_what_is_gone_is_over_at_once(cli: Cli) -> None:
    cli("wait", "gone-before", "--for", "deleted")
    cli.error(4, "not_found", "wait", "gone-before")

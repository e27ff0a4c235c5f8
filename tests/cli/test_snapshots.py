"""Snapshots and revert."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli, MiB, zeros
from tests.conftest import tmpfs

FIELDS = ["id", "name", "project", "volume_id", "size", "status", "fault", "properties", "created_at"]


def test_create_list_show_set_delete(cli: Cli) -> None:
    volume = cli.volume("v", "--size", "2M")
    cli.fill("v", b"first")
    made = cli.json("snapshot", "create", "v", "s", "--description", "d", "--property", "k=v")
    assert list(made)[:9] == FIELDS
    assert (made["volume_id"], made["size"], made["status"]) == (volume["id"], 2 * MiB, "available")
    assert (made["properties"], made["description"], made["fault"]) == ({"k": "v"}, "d", None)
    file = cli.pool / f"snap-{made['id']}"
    assert file.read_bytes()[:5] == b"first"
    assert file.stat().st_mode & 0o777 == 0o600
    cli.fill("v", b"later")
    assert file.read_bytes()[:5] == b"first"
    assert cli.json("snapshot", "list") == [made]
    changed = cli.json("snapshot", "set", "s", "--name", "t", "--property", "k=w", "--description", "e")
    assert (changed["name"], changed["properties"], changed["description"]) == ("t", {"k": "w"}, "e")
    assert cli.events(made["id"]) == ["snapshot.status", "snapshot.start", "snapshot.status", "snapshot.end"]
    cli("snapshot", "delete", "t", "--yes")
    assert not file.exists()
    assert cli.json("snapshot", "list") == []
    assert cli.file("v").read_bytes()[:5] == b"later"


def test_without_a_name(cli: Cli) -> None:
    cli.volume("v")
    made = [cli.json("snapshot", "create", "v") for _ in range(2)]
    assert [snapshot["name"] for snapshot in made] == [None, None]
    assert cli.json("snapshot", "list", "--volume", "v") == made


def test_lists(cli: Cli) -> None:
    for volume in ("v", "w"):
        cli.volume(volume)
        cli("snapshot", "create", volume, f"of-{volume}")

    def names(*words: str) -> list[str]:
        return [snapshot["name"] for snapshot in cli.json("snapshot", "list", *words)]

    assert names() == ["of-v", "of-w"]
    assert names("--volume", "w") == ["of-w"]
    assert names("--sort", "name:desc", "--limit", "1") == ["of-w"]
    assert names("--status", "error") == names("--project", "other") == []
    assert names("--project", "other", "--all-projects") == ["of-v", "of-w"]
    cli.refused(4, "not_found", "snapshot", "list", "--volume", "nothere")
    cli.refused(2, "usage", "snapshot", "list", "--status", "nope")


def test_refusals(cli: Cli) -> None:
    cli.volume("v")
    cli.refused(4, "not_found", "snapshot", "create", "nothere", "s")
    cli.refused(4, "not_found", "snapshot", "delete", "nothere", "--yes")
    cli.refused(4, "not_found", "revert", "v", "nothere", "--yes")
    cli("snapshot", "create", "v", "s")
    cli.refused(2, "usage", "snapshot", "delete", "s")
    cli.refused(2, "usage", "revert", "v", "s")
    cli.volume("w")
    error = cli.refused(2, "usage", "revert", "w", "s", "--yes")
    assert "another volume" in error["message"]


def test_delete_several(cli: Cli) -> None:
    cli.volume("v")
    for name in ("a", "b"):
        cli("snapshot", "create", "v", name)
    cli("snapshot", "delete", "a", "nothere", "b", "--yes", status=3)
    assert cli.json("snapshot", "list") == []


def test_deleting_one_keeps_every_other_content(cli: Cli) -> None:
    cli.volume("v")
    kept = {}
    for number in range(4):
        cli.fill("v", b"%d" % number)
        kept[f"s{number}"] = b"%d" % number
        cli("snapshot", "create", "v", f"s{number}")
    cli("create", "clone", "--from-snapshot", "s1")
    for name in ("s1", "s0", "s3"):
        cli("snapshot", "delete", name, "--yes")
        del kept[name]
        for other, content in kept.items():
            snapshot = cli.json("snapshot", "show", other)
            assert (cli.pool / f"snap-{snapshot['id']}").read_bytes()[:1] == content
        assert cli.file("v").read_bytes()[:1] == b"3"
        assert cli.file("clone").read_bytes()[:1] == b"1"


def test_revert_keeps_size_snapshot_and_mode(cli: Cli) -> None:
    cli.volume("v", "--size", "2M")
    cli.fill("v", b"old")
    cli("snapshot", "create", "v", "s")
    cli.file("v").chmod(0o640)
    cli("extend", "v", "4M")
    cli.fill("v", b"new" * MiB)
    cli.fill("v", b"tail", 3 * MiB)
    reverted = cli.json("revert", "v", "s", "--yes")
    assert (reverted["size"], reverted["status"]) == (4 * MiB, "available")
    file = cli.file("v")
    assert file.read_bytes()[:4] == b"old\0"
    assert file.stat().st_size == 4 * MiB
    assert file.stat().st_mode & 0o777 == 0o640
    assert zeros(file, 3)
    assert cli.json("snapshot", "show", "s")["status"] == "available"
    cli("revert", "v", "s", "--yes")
    assert "revert.end" in cli.events("v")


def test_revert_to_any_snapshot(cli: Cli) -> None:
    cli.volume("v")
    for number in range(3):
        cli.fill("v", b"%d" % number)
        cli("snapshot", "create", "v", f"s{number}")
    for number in (0, 2, 1):
        cli("revert", "v", f"s{number}", "--yes")
        assert cli.file("v").read_bytes()[:1] == b"%d" % number
    assert len(cli.json("snapshot", "list")) == 3


def test_a_snapshot_that_fails_is_an_error_and_can_be_deleted(cli: Cli) -> None:
    pool = cli.home / "pool"
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{pool}"\nfail = ["snapshot"]\n')
    cli("backend", "init", "f", "--yes")
    cli.volume("v")
    cli.error(8, "backend", "snapshot", "create", "v", "s")
    failed = cli.json("snapshot", "show", "s")
    assert (failed["status"], failed["fault"]["code"]) == ("error", "backend")
    assert not list(pool.glob("snap-*"))
    assert cli.json("show", "v")["status"] == "available"
    cli("snapshot", "delete", "s", "--yes")
    assert cli.quota()["snapshots"]["in_use"] == 0


def test_a_revert_for_which_there_is_no_room_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "12M") as place:
        cli.configure(f'[[backend]]\nname = "small"\nkind = "loop"\ndirectory = "{place}/pool"\n')
        cli("backend", "init", "small", "--yes")
        cli.volume("v", "--size", "5M")
        cli.fill("v", b"old" * MiB)
        cli("snapshot", "create", "v", "s")
        cli.fill("v", b"new" * MiB)
        (place / "else").write_bytes(bytes(5 * MiB))
        there = sorted(place.rglob("*"))
        cli.error(6, "no_space", "revert", "v", "s", "--yes")
        assert sorted(place.rglob("*")) == there
        assert cli.json("show", "v")["status"] == "available"
        assert cli.file("v").read_bytes()[: 3 * MiB] == b"new" * MiB
        cli("snapshot", "delete", "s", "--yes")
        assert cli.json("doctor") == []

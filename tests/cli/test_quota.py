"""Quota: every resource, its use and its limits; a refusal leaves nothing."""

from __future__ import annotations

from tests.cli.conftest import Cli, GiB, MiB


def use(cli: Cli, resource: str) -> int:
    used: int = cli.quota()[resource]["in_use"]
    return used


def test_show(cli: Cli) -> None:
    lines = cli.json("quota", "show")
    assert [line["resource"] for line in lines] == ["volumes", "gigabytes", "snapshots", "per_volume_gigabytes"]
    assert all(list(line) == ["resource", "limit", "in_use", "reserved"] for line in lines)
    assert {line["limit"] for line in lines} == {-1}


def test_set(cli: Cli) -> None:
    cli("quota", "set", "--volumes", "3", "--gigabytes", "5", "--snapshots", "0", "--per-volume-gigabytes", "2")
    limits = {name: line["limit"] for name, line in cli.quota().items()}
    assert limits == {"volumes": 3, "gigabytes": 5 * GiB, "snapshots": 0, "per_volume_gigabytes": 2 * GiB}
    cli("quota", "set", "--volumes=-1")
    assert cli.quota()["volumes"]["limit"] == -1
    assert cli.json("quota", "show", "--project", "other")[0]["limit"] == -1
    for words in (["--volumes", "-2"], ["--volumes", "x"], ["--gigabytes", "1.5"], ["--volumes", "9" * 30]):
        cli.refused(2, "usage", "quota", "set", *words)
    cli.refused(4, "not_found", "quota", "set", "--volumes", "1", "--type", "nope")


def test_volumes(cli: Cli) -> None:
    cli("quota", "set", "--volumes", "1")
    cli.volume("v")
    error = cli.refused(6, "quota", "create", "w", "--size", "1M")
    assert error["details"] == {"resource": "volumes", "limit": 1, "in_use": 1, "requested": 1}
    assert "limit 1, in use 1, asked for 1" in error["message"]
    assert cli.volume("w", "--size", "1M", "--project", "other")
    cli("delete", "v", "--yes")
    cli.volume("w")


def test_gigabytes(cli: Cli) -> None:
    cli("quota", "set", "--gigabytes", "1")
    cli.volume("v", "--size", "1023M")
    error = cli.refused(6, "quota", "create", "w", "--size", "2M")
    want = {"resource": "gigabytes", "limit": GiB, "in_use": 1023 * MiB, "requested": 2 * MiB}
    assert error["details"] == want
    cli.volume("w", "--size", "1M")
    cli.refused(6, "quota", "extend", "w", "+1M")
    assert use(cli, "gigabytes") == GiB


def test_gigabytes_are_named_first(cli: Cli) -> None:
    cli("quota", "set", "--gigabytes", "0", "--volumes", "0")
    assert cli.refused(6, "quota", "create", "v", "--size", "1M")["details"]["resource"] == "gigabytes"


def test_per_volume(cli: Cli) -> None:
    cli("quota", "set", "--per-volume-gigabytes", "1")
    error = cli.refused(6, "quota", "create", "v", "--size", "1025M")
    assert error["details"]["resource"] == "per_volume_gigabytes"
    cli.volume("v", "--size", "1")
    cli.refused(6, "quota", "extend", "v", "+1M")


def test_per_type(cli: Cli) -> None:
    cli("type", "create", "gold")
    cli("quota", "set", "--type", "gold", "--volumes", "1", "--gigabytes", "1", "--snapshots", "1")
    cli.volume("v", "--size", "2M", "--type", "gold")
    error = cli.refused(6, "quota", "create", "w", "--size", "1M", "--type", "gold")
    assert error["details"]["resource"] == "volumes_gold"
    cli.volume("w")
    cli("snapshot", "create", "w")
    cli("snapshot", "create", "v")
    assert cli.refused(6, "quota", "snapshot", "create", "v")["details"]["resource"] == "snapshots_gold"
    assert cli.refused(6, "quota", "extend", "v", "2")["details"]["resource"] == "gigabytes_gold"
    lines = cli.quota()
    assert lines["volumes_gold"] == {"resource": "volumes_gold", "limit": 1, "in_use": 1, "reserved": 0}
    assert lines["gigabytes_gold"]["in_use"] == 4 * MiB  # the volume and its snapshot
    assert lines["gigabytes"]["in_use"] == 6 * MiB
    assert lines["snapshots"]["in_use"] == 2


def test_snapshots_count_gigabytes_unless_told_otherwise(cli: Cli) -> None:
    cli.volume("v", "--size", "3M")
    cli("snapshot", "create", "v", "s")
    assert use(cli, "gigabytes") == 6 * MiB
    cli("quota", "set", "--gigabytes", "0")
    assert cli.refused(6, "quota", "snapshot", "create", "v")["details"]["resource"] == "gigabytes"
    cli.configure("no_snapshot_gb_quota = true\n")
    cli("snapshot", "create", "v", "t")
    assert use(cli, "gigabytes") == 3 * MiB
    assert use(cli, "snapshots") == 2


def test_the_number_of_snapshots(cli: Cli) -> None:
    cli.volume("v")
    cli("quota", "set", "--snapshots", "1")
    cli("snapshot", "create", "v", "s")
    assert cli.refused(6, "quota", "snapshot", "create", "v", "t")["details"]["resource"] == "snapshots"
    cli("snapshot", "delete", "s", "--yes")
    cli("snapshot", "create", "v", "t")


def test_extend_reserves_the_difference(cli: Cli) -> None:
    cli("quota", "set", "--gigabytes", "3")
    cli.volume("v", "--size", "2")
    error = cli.refused(6, "quota", "extend", "v", "4")
    assert error["details"]["requested"] == 2 * GiB
    cli("extend", "v", "3")
    assert cli.quota()["gigabytes"] == {
        "resource": "gigabytes", "limit": 3 * GiB, "in_use": 3 * GiB, "reserved": 0,
    }  # fmt: skip


def test_a_limit_below_the_use(cli: Cli) -> None:
    """Refuses what is new, and nothing else."""
    cli.volume("v", "--size", "2M")
    cli.volume("w")
    cli("snapshot", "create", "v", "s")
    cli("quota", "set", "--volumes", "1", "--gigabytes", "0", "--snapshots", "0")
    cli.refused(6, "quota", "create", "x", "--size", "1M")
    cli("set", "v", "--description", "still fine")
    cli("revert", "v", "s", "--yes")
    cli("snapshot", "delete", "s", "--yes")
    cli("delete", "v", "w", "--yes")
    assert use(cli, "volumes") == use(cli, "gigabytes") == 0


def test_defaults_of_the_configuration(cli: Cli) -> None:
    cli.configure("[quota]\nvolumes = 1\ngigabytes_gold = 1\n")
    cli("type", "create", "gold")
    cli.refused(6, "quota", "create", "v", "--size", "1025M", "--type", "gold")
    cli.volume("v", "--size", "1", "--type", "gold")
    cli.refused(6, "quota", "create", "w", "--size", "1M")
    cli("quota", "set", "--volumes", "2")
    cli.volume("w")
    cli.refused(6, "quota", "create", "x", "--size", "1M")
    cli.volume("x", "--size", "1M", "--project", "other")
    cli.refused(6, "quota", "create", "y", "--size", "1M", "--project", "other")


def test_errors_count_until_deleted(cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{cli.home}/f"\nfail = ["create"]\n')
    cli("backend", "init", "f", "--yes")
    cli("create", "v", "--size", "2M", status=8)
    assert use(cli, "volumes") == 1
    assert use(cli, "gigabytes") == 2 * MiB
    cli("delete", "v", "--yes")
    assert use(cli, "volumes") == 0


def test_cancelled_by_the_clock_leaves_no_use(cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{cli.home}/f"\n')
    cli("backend", "init", "f", "--yes")
    (cli.home / "f" / "fail").write_text('{"create": {"pause": 60}}')
    before = cli.json("quota", "show")
    cli.error(124, "timeout", "create", "v", "--size", "1M", "--timeout", "300ms")
    assert cli.json("list") == []
    assert cli.json("quota", "show") == before


def test_sizes_that_no_integer_of_the_database_can_sum(cli: Cli) -> None:
    """Two volumes that were asked for with a slip of the finger, and every command goes on."""
    for name in "ab":
        cli.error(6, "no_backend", "create", name, "--size", "8191P")
    cli.volume("c")
    assert cli.quota()["gigabytes"]["in_use"] == 2 * 8191 * 1024**5 + MiB
    cli("backend", "list")
    cli("quota", "set", "--gigabytes", "1")
    cli.refused(6, "quota", "create", "d", "--size", "1M")


def test_a_type_that_is_named_like_a_resource(cli: Cli) -> None:
    cli("type", "create", "gigabytes-fast")
    cli("quota", "set", "--volumes", "1", "--type", "gigabytes-fast")
    cli.volume("a", "--size", "1M", "--type", "gigabytes-fast")
    error = cli.refused(6, "quota", "create", "b", "--size", "1M", "--type", "gigabytes-fast")
    assert (error["details"]["limit"], error["details"]["in_use"]) == (1, 1)


def test_the_limits_of_a_type_go_with_it(cli: Cli) -> None:
    cli("type", "create", "t")
    cli("quota", "set", "--volumes", "0", "--type", "t")
    cli("type", "delete", "t", "--yes")
    cli("type", "create", "t")
    cli.volume("v", "--size", "1M", "--type", "t")

"""Delete, protect, cascade, force, and who holds a volume."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.conftest import Volctl


def fake(cli: Cli, **orders: object) -> Path:
    pool = cli.home / "pool"
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{pool}"\n')
    cli("backend", "init", "f", "--yes")
    (pool / "fail").write_text(json.dumps(orders))
    return pool


def test_delete(cli: Cli) -> None:
    made = cli.volume("v")
    ran = cli("delete", "v", "--yes", "--json")
    assert ran.out == ""
    assert cli.json("list") == []
    assert not list(cli.pool.glob("*-*"))
    assert not (cli.state / "locks" / made["id"]).exists()
    assert cli.events(made["id"])[-3:] == ["volume.status", "delete.start", "delete.end"]
    cli.refused(4, "not_found", "delete", "v", "--yes")
    assert cli.quota()["volumes"]["in_use"] == 0


def test_delete_several(cli: Cli) -> None:
    for name in ("a", "b"):
        cli.volume(name)
    ran = cli("delete", "a", "nothere", "b", "--yes", "--json", status=3)
    error = json.loads(ran.err.splitlines()[-1])["error"]
    assert [failed["ref"] for failed in error["details"]["failed"]] == ["nothere"]
    assert cli.json("list") == []


def test_nobody_to_ask(cli: Cli) -> None:
    cli.volume("v")
    cli("snapshot", "create", "v", "s")
    for words in (["delete", "v"], ["delete", "v", "--cascade", "--force"], ["revert", "v", "s"]):
        assert "--yes" in cli.refused(2, "usage", *words)["hint"]
    cli.refused(2, "usage", "snapshot", "delete", "s")


def test_protected(cli: Cli) -> None:
    cli.volume("v")
    assert cli.json("protect", "v")["protected"] is True
    cli("snapshot", "create", "v", "s")
    for words in ((), ("--force",), ("--cascade",), ("--cascade", "--force")):
        assert "unprotect" in cli.refused(5, "protected", "delete", "v", "--yes", *words)["hint"]
    assert cli.json("unprotect", "v")["protected"] is False
    cli("delete", "v", "--yes", "--cascade")


def test_snapshots_and_cascade(cli: Cli) -> None:
    cli.volume("v")
    cli.fill("v", b"content")
    for name in ("s", "t"):
        cli("snapshot", "create", "v", name)
    cli("create", "clone", "--from-snapshot", "s")
    cli("create", "copy", "--from-volume", "v")
    error = cli.refused(5, "conflict", "delete", "v", "--yes")
    assert "s, t" in error["message"]
    assert "--cascade" in error["hint"]
    cli("delete", "v", "--yes", "--cascade")
    assert cli.json("snapshot", "list") == []
    assert [volume["name"] for volume in cli.json("list")] == ["clone", "copy"]
    assert cli.file("clone").read_bytes()[:7] == cli.file("copy").read_bytes()[:7] == b"content"
    assert not list(cli.pool.glob("snap-*"))


def test_force_from_any_error_status(cli: Cli) -> None:
    pool = fake(cli, delete={"message": "broken"})
    cli.volume("v")
    cli.error(8, "backend", "delete", "v", "--yes")
    assert cli.json("show", "v")["status"] == "error_deleting"
    assert list(pool.glob("volume-*"))
    cli.error(5, "conflict", "delete", "v", "--yes")
    (pool / "fail").unlink()
    cli("delete", "v", "--yes", "--force", status=0)
    assert cli.json("list") == []
    assert not list(pool.glob("volume-*"))


def test_an_error_without_force(cli: Cli) -> None:
    fake(cli, create={"message": "broken"})
    cli.error(8, "backend", "create", "v", "--size", "1M")
    cli("delete", "v", "--yes")
    assert cli.json("list") == []


def test_a_backend_that_is_no_more(cli: Cli) -> None:
    pool = fake(cli)
    cli.volume("v")
    cli.volume("w")
    cli("snapshot", "create", "w", "s")
    cli.configure("")
    error = cli.error(8, "backend", "delete", "v", "--yes")
    assert "--force" in error["hint"]
    assert cli.json("show", "v")["status"] == "available"
    cli("delete", "v", "--yes", "--force")
    cli("delete", "w", "--yes", "--force", "--cascade")
    assert cli.json("list") == []
    assert len(list(pool.glob("*-*"))) == 3  # not ours to reach any more


@contextmanager
def holding(*command: str | Path, say: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A program that holds a file once it has printed a line."""
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    try:
        assert program.stdout is not None
        assert program.stdin is not None
        program.stdin.write(say.encode())
        program.stdout.readline()
        yield program
    finally:
        program.kill()
        program.communicate()


def refused_while_held(cli: Cli, volctl: Volctl, name: str) -> None:
    before = cli.everything()
    for words in (
        ["delete", "v", "--yes", "--cascade"],
        ["delete", "v", "--yes", "--cascade", "--force"],
        ["extend", "v", "2M"],
        ["revert", "v", "s", "--yes"],
    ):
        ran = volctl(*words, "--json", status=5)
        error = json.loads(ran.err.splitlines()[-1])["error"]
        assert error["code"] == "in_use"
        assert name in error["message"], words
    assert cli.everything() == before


def test_a_process_holds_it(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    cli("snapshot", "create", "v", "s")
    with holding("bash", "-c", f"exec 9<>{cli.file('v')}; flock 9; echo; read") as holder:
        refused_while_held(cli, volctl, f"(pid {holder.pid})")
    volctl("delete", "v", "--yes", "--cascade")


def test_qemu_holds_it(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    cli("snapshot", "create", "v", "s")
    file = cli.file("v")
    with holding("qemu-io", "-f", "raw", file, say="read 0 512\n") as holder:
        refused_while_held(cli, volctl, f"qemu-io (pid {holder.pid})")


@pytest.mark.root
def test_a_loop_device_holds_it(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    cli("snapshot", "create", "v", "s")
    made = subprocess.run(["losetup", "-f", "--show", cli.file("v")], capture_output=True, text=True, check=True)
    device = made.stdout.strip()
    try:
        refused_while_held(cli, volctl, device)
        ran = volctl("create", "w", "--from-volume", "v", status=5)  # it would be copied while it changes
        assert device in ran.err
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    volctl("delete", "v", "--yes", "--cascade")

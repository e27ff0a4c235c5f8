"""Extend: SIZE and +SIZE, the tail, what is refused."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.conftest import Cli, GiB, MiB, zeros
from tests.conftest import Volctl


def test_size_and_plus_size(cli: Cli) -> None:
    cli.volume("v", "--size", "2M")
    cli.fill("v", b"x" * 2 * MiB)
    for asked, size in (("3M", 3 * MiB), ("+1M", 4 * MiB), ("+1G", GiB + 4 * MiB), ("2", 2 * GiB)):
        assert cli.json("extend", "v", asked)["size"] == size
        assert cli.file("v").stat().st_size == size
    assert zeros(cli.file("v"), 2 * MiB)
    with cli.file("v").open("rb") as file:
        assert file.read(2 * MiB) == b"x" * 2 * MiB
    assert cli.quota()["gigabytes"]["in_use"] == 2 * GiB
    assert cli.events("v").count("extend.end") == 4


def test_a_rounded_size_is_told(cli: Cli) -> None:
    cli.volume("v", "--size", "2M")
    assert f"{3 * MiB} bytes" in cli("extend", "v", "2.5M").err
    assert f"{4 * MiB} bytes" in cli("extend", "v", "+1kB").err
    assert cli("extend", "v", "+1M").err == ""


def test_a_failure_keeps_the_old_size(cli: Cli) -> None:
    pool = cli.home / "pool"
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{pool}"\nfail = ["extend"]\n')
    cli("backend", "init", "f", "--yes")
    cli.volume("v", "--size", "2M")
    cli.error(8, "backend", "extend", "v", "3M")
    kept = cli.json("show", "v")
    assert (kept["size"], kept["status"], kept["fault"]) == (2 * MiB, "available", None)
    assert cli.quota()["gigabytes"] == {"resource": "gigabytes", "limit": -1, "in_use": 2 * MiB, "reserved": 0}


def test_a_held_volume_is_refused(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    file = cli.file("v")
    holder = subprocess.Popen([sys.executable, "-c", f"f = open({str(file)!r}); print(flush=True); input()"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        ran = volctl("extend", "v", "2M", status=5)
        assert f"pid {holder.pid}" in ran.err
    finally:
        holder.kill()
        holder.communicate()
    volctl("extend", "v", "2M")

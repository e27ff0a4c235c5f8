"""Many processes at once, on a state directory that does not exist yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

from tests.cli.conftest import Cli, MiB
from tests.conftest import LIMIT, Volctl

MANY = 64
# One warm process forks them all: what they do at once is the same, the imports are paid once.
FORK = """
import json, os, sys
import volctl.cli.app, volctl.service.creation, volctl.cli.create, volctl.model, backends.loop
from volctl.cli import main
home, commands = sys.argv[1], json.loads(sys.argv[2])
gate, children = os.pipe(), {}
for number, words in enumerate(commands):
    pid = os.fork()
    if pid == 0:
        os.close(gate[1])
        os.read(gate[0], 1)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{home}/{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        os._exit(main(words))
    children[pid] = number
os.close(gate[1])
codes = {}
for _ in commands:
    pid, status = os.wait()
    codes[children[pid]] = os.waitstatus_to_exitcode(status)
print(json.dumps([codes[number] for number in range(len(commands))]))
"""


def at_once(cli: Cli, volctl: Volctl, commands: list[list[str]]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, standard outputs and standard errors."""
    logs = cli.home / "logs"
    logs.mkdir(exist_ok=True)
    argv = [sys.executable, "-c", FORK, str(logs), json.dumps(commands)]
    done = subprocess.run(argv, env=volctl.environment, capture_output=True, text=True, check=True, timeout=LIMIT)
    out, err = ([(logs / f"{number}.{name}").read_text() for number in range(len(commands))] for name in ("out", "err"))
    return json.loads(done.stdout), out, err


def consistent(cli: Cli) -> list[Any]:
    """The volumes; each has its file, each file its volume, and the quota is the sum."""
    volumes: list[Any] = cli.json("list", "--all-projects")
    available = [volume for volume in volumes if volume["status"] == "available"]
    assert {path.name for path in cli.pool.glob("*-*")} == {f"volume-{volume['id']}" for volume in available}
    assert {path.name for path in (cli.state / "locks").iterdir()} <= {volume["id"] for volume in volumes}
    assert cli.quota()["gigabytes"]["in_use"] == sum(volume["size"] for volume in volumes)
    assert {line["reserved"] for line in cli.json("quota", "show")} == {0}
    assert {flow["phase"] for flow in cli.json("flow", "list", "--all")} <= {"done", "undone"}
    return volumes


def test_whole_processes(cli: Cli, volctl: Volctl) -> None:
    """Started by nobody's warm parent."""
    words = [sys.executable, "-m", "volctl", "create", "--size", "1M", "-q"]
    programs = [
        subprocess.Popen([*words, f"v{number}"], env=volctl.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(10)
    ]
    said = [program.communicate(timeout=LIMIT)[1].decode() for program in programs]
    assert Counter(program.returncode for program in programs) == {0: 10}, said
    assert set(said) == {""}
    assert {volume["name"] for volume in consistent(cli)} == {f"v{number}" for number in range(10)}


def test_64_processes_make_64_volumes(cli: Cli, volctl: Volctl) -> None:
    codes, _, errors = at_once(cli, volctl, [["create", f"v{number}", "--size", "1M"] for number in range(MANY)])
    assert Counter(codes) == {0: MANY}, errors
    assert set(errors) == {""}
    assert len(consistent(cli)) == MANY


def test_a_quota_for_ten(cli: Cli, volctl: Volctl) -> None:
    cli.configure("[quota]\nvolumes = 10\n")
    commands = [["create", f"v{number}", "--size", "1M", "--json"] for number in range(MANY)]
    codes, _, errors = at_once(cli, volctl, commands)
    assert Counter(codes) == {0: 10, 6: MANY - 10}, errors
    refused = [json.loads(text.splitlines()[-1])["error"]["code"] for text in errors if text]
    assert refused == ["quota"] * (MANY - 10)
    assert len(consistent(cli)) == 10


def test_one_name_with_if_absent(cli: Cli, volctl: Volctl) -> None:
    codes, said, errors = at_once(cli, volctl, [["create", "v", "--size", "1M", "--if-absent", "-q"]] * MANY)
    assert Counter(codes) == {0: MANY}, errors
    (volume,) = consistent(cli)
    assert set(said) == {volume["id"] + "\n"}


def test_one_name_without(cli: Cli, volctl: Volctl) -> None:
    codes, _, errors = at_once(cli, volctl, [["create", "v", "--size", "1M"]] * 16)
    assert Counter(codes) == {0: 1, 5: 15}, errors
    assert len(consistent(cli)) == 1


def test_clones_snapshots_and_growth_of_one_volume(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    cli.fill("v", b"content")
    commands = [["create", f"c{number}", "--from-volume", "v"] for number in range(8)]
    commands += [["snapshot", "create", "v", f"s{number}"] for number in range(8)]
    commands += [["extend", "v", "+1M"] for _ in range(8)]
    codes, _, errors = at_once(cli, volctl, commands)
    assert Counter(codes) == {0: 24}, errors
    assert cli.json("show", "v")["size"] == cli.file("v").stat().st_size == 9 * MiB
    assert len(cli.json("snapshot", "list")) == 8
    for number in range(8):
        assert cli.file(f"c{number}").read_bytes()[:8] == b"content\0"


def test_deleted_once(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    codes, _, errors = at_once(cli, volctl, [["delete", "v", "--yes"]] * 12)
    assert Counter(codes) == {0: 1, 4: 11}, errors
    assert consistent(cli) == []


def test_a_source_is_deleted_while_it_is_cloned(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v", "--size", "32M")
    cli.fill("v", b"x" * (32 * MiB))
    commands = [["create", f"c{number}", "--from-volume", "v"] for number in range(6)]
    commands.insert(3, ["delete", "v", "--yes"])
    codes, _, errors = at_once(cli, volctl, commands)
    assert codes[3] == 0, errors
    assert set(codes) <= {0, 4, 5}, errors
    for volume in consistent(cli):
        if volume["status"] == "available":
            assert cli.file(volume["id"]).read_bytes() == b"x" * (32 * MiB)


def test_lock_timeout(cli: Cli, volctl: Volctl) -> None:
    import fcntl

    made = cli.volume("v")
    lock = cli.state / "locks" / made["id"]
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        error = cli.error(10, "locked", "extend", "v", "2M", "--lock-timeout", "200ms")
        assert error["volume"] == made["id"]
        cli.error(10, "locked", "delete", "v", "--yes", "--lock-timeout", "0")
    cli("extend", "v", "2M")

"""Power cuts while volctl works on LVM: the program that is cut, and the look at what each instant left.

    python3 tests/root/cut_lvm.py THIN-DISK THICK-DISK    # says what it begins and what is done

It works on both groups at once, so that each instant is one of two commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import volctl.cli
from tests import oracle
from tests.engine.zygote import quiet, warm_up
from tests.oracle import Content
from tests.root import lvm_oracle, promises
from tests.root.lvm_rig import run

MiB = 1024**2
HOME = Path("/var/lib/volctl")
STATE = HOME / "state"
GROUPS = {"thin": "cut-thin", "thick": "cut-thick"}
ROUNDS = int(os.environ.get("VOLCTL_CUT_ROUNDS", "1"))


class Copy(Protocol):
    """tests/system/each_instant.py."""

    name: str
    said: str


def volctl_in_a_fork(*argv: str, out: int | None = None) -> int:
    """Its exit status; what it prints goes to `out`."""
    child = os.fork()
    if child == 0:
        os.environ.update({"VOLCTL_STATE_DIR": str(STATE), "VOLCTL_CONFIG": str(HOME / "config.toml")})
        os.dup2(out if out is not None else os.open(os.devnull, os.O_WRONLY), 1)
        status = volctl.cli.main(list(argv))
        sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def data() -> bytes:
    return random.Random(1).randbytes(4 * MiB)


# -- what is cut


def furnish(disks: list[str]) -> None:
    """A group on each disk, with a stranger's LV and a volume `src-B` in it."""
    tables = []
    for (backend, group), disk in zip(GROUPS.items(), disks, strict=True):
        run("vgcreate", "-q", "-s", "1m", group, disk)
        run("lvcreate", "-y", "-Wn", "-L", "4m", "-n", "home", group)
        put(f"{group}/home", data()[::-1])
        pool = 'pool_size = "64M"\n' if backend == "thin" else ""
        options = f'volume_group = "{group}"\nprovisioning = "{backend}"\n{pool}'
        tables.append(f'[[backend]]\nname = "{backend}"\nkind = "lvm"\n{options}')
    (HOME / "config.toml").write_text("\n".join(tables))
    for backend, group in GROUPS.items():
        assert volctl_in_a_fork("backend", "init", backend, "-y") == 0
        assert volctl_in_a_fork("create", f"src-{backend}", "--size", "4M", "--backend", backend) == 0
        (name,) = (name for name in lvm_oracle.report([group]) if "/volume-" in name)
        with lvm_oracle.awake([name]):
            put(name, data())
    os.sync()


def put(name: str, content: bytes) -> None:
    fd = os.open(f"/dev/{name}", os.O_RDWR)
    os.write(fd, content)
    os.fsync(fd)
    os.close(fd)


def say(line: str) -> None:
    """At once: what is said before a cut counts."""
    os.write(1, f"{line}\n".encode())


def work(backend: str) -> None:
    for _round in range(ROUNDS):
        for line in promises.lines(promises.ROUND, backend):
            say(f"begin {line}")
            status = volctl_in_a_fork(*line.split())
            assert status == 0, f"{line}: exit {status}"
            say(f"done {line}")


def main() -> None:
    quiet(lambda: warm_up(["backends.lvm", "sh", "pyudev"]))
    furnish(sys.argv[1:])
    say("ready")
    children = []
    for backend in GROUPS:
        children.append(os.fork())
        if children[-1] == 0:
            work(backend)
            os._exit(0)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    say("over")
    sys.exit(any(statuses))


# -- what it left


def check(copy: Copy) -> None:
    """One command, then SPEC section 11, and what was said to be done is. Contents are read in one of the groups."""
    assert volctl_in_a_fork("quota", "set", "--volumes", "1000") == 0
    with tempfile.TemporaryFile("w+") as told, tempfile.NamedTemporaryFile() as source:
        assert volctl_in_a_fork("quota", "show", "--json", out=told.fileno()) == 0
        told.seek(0)
        source.write(data())
        source.flush()
        known = Content(Path(source.name))
        contents = {f"{name}-{backend}": known for name in ("src", "s", "w") for backend in GROUPS}
        strange = (str(4 * MiB), "", hashlib.sha256(data()[::-1]).hexdigest())
        foreign = {f"{group}/home": strange for group in GROUPS.values()}
        group = sorted(GROUPS.values())[zlib.crc32(copy.name.encode()) % 2]
        found = lvm_oracle.check(lvm_oracle.World(STATE, GROUPS, contents, foreign, [group], json.load(told)))
    found = found or promises.broken(oracle.load(STATE), copy.said)
    assert not found, "\n".join(found)


if __name__ == "__main__":
    main()
else:
    quiet(lambda: warm_up(["backends.lvm", "sh", "pyudev"]))

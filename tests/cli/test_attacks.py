"""The attack table: every hostile image through the command line, under strace; docs/attacks.md is written by this.

VOLCTL_WRITE_DOCS=1 writes the page anew; without it the page must be what the test would write.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, Volctl
from tests.engine.crash import Ended, Rig, Zygote, empty
from tests.unit import image_corpus as corpus
from tests.unit.attack_corpus import ATTACKS, HARMLESS

PAGE = REPO / "docs" / "attacks.md"
SECONDS, MEMORY = 2.0, 256 * corpus.MiB
HUNG = 60.0  # seconds
TRACE = "open,openat,openat2,creat,connect,execve,fork,vfork,clone,clone3"
SYSTEM = (
    "/usr/",
    "/lib/",
    "/lib64/",
    "/bin/",
    "/proc/",
    "/sys/",
    "/etc/ld.so.",
    "/etc/gnutls/",
    "/etc/machine-id",
    "/dev/fd/",
)
DEVICES = ("/dev/null", "/dev/urandom", "/dev/fd", "/dev/shm", "/proc")  # /proc: who is left of a child that is ended
AT = r"(?:(?:AT_FDCWD|[0-9]+)<(?P<at>[^>]*)>, )?"
OPENED = re.compile(rf'(?:open|creat|openat|openat2)\({AT}"(?P<path>(?:[^"\\]|\\.)*)"')
BORN = re.compile(r"(?:clone3?|v?fork)(?:\(| resumed>).* = ([0-9]+)$")


@dataclass(frozen=True, slots=True)
class Try:
    """One image through `volctl create`: its path, how that ended, the process, what was left."""

    group: str
    name: str
    path: Path
    pid: int
    ended: Ended
    left: list[str]

    @property
    def error(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.ended.err.splitlines()[-1])["error"]
        return told


@contextmanager
def images(make: Any) -> Iterator[tuple[Path, Path]]:
    """The image and the disk that it is to read as, in a directory of their own."""
    with tempfile.TemporaryDirectory(prefix="volctl-attack-") as name:
        disk = corpus.raw(Path(name, "disk.raw"))
        yield make(Path(name)), disk


def create(rig: Rig, path: Path) -> tuple[int, Ended]:
    pid = rig.start("create", "v", "--from-image", str(path), "--json")
    watchdog = threading.Timer(HUNG, os.kill, (pid, 9))
    watchdog.start()
    try:
        return pid, rig.join(pid)
    finally:
        watchdog.cancel()


def leftovers(rig: Rig) -> list[str]:
    """Rows and files of volumes, unpacked images, locks."""
    held = [name for pool in rig.pools for name in rig.held(pool)]
    return [*held, *os.listdir(rig.state / "images"), *([str(rig.volume("v"))] if rig.volume("v") else [])]


def attack(rig: Rig) -> Iterator[Try]:
    for group, attacks in ATTACKS.items():
        for name, (make, _) in attacks.items():
            with images(make) as (path, _disk):
                pid, ended = create(rig, path)
                yield Try(group, name, path, pid, ended, leftovers(rig))


def wrong_of(tried: Try) -> Iterator[str]:
    """What is not as it must be, but for the files opened."""
    code, status = ATTACKS[tried.group][tried.name][1], tried.ended.status
    if status != 7:
        yield f"exit {status}: {tried.ended.err[-300:]}"
    elif tried.error["code"] != code:
        yield f"{tried.error['code']}, not {code}: {tried.error['message']}"
    if "Traceback" in tried.ended.err or tried.ended.out:
        yield f"it said {tried.ended.out} {tried.ended.err[-300:]}"
    if tried.ended.seconds > SECONDS:
        yield f"{tried.ended.seconds:.2f} s of processor time"
    if tried.ended.memory > MEMORY:
        yield f"{tried.ended.memory >> 20} MiB"
    if tried.left:
        yield f"left: {tried.left}"


def relatives(rig: Rig) -> Iterator[str]:
    """Each harmless image becomes a volume that reads as the disk."""
    for group, good in HARMLESS.items():
        for name, make in good.items():
            with images(make) as (path, disk):
                _, ended = create(rig, path)
                if ended.status:
                    yield f"{group}: {name}: exit {ended.status}: {ended.err[-300:]}"
                    continue
                if rig.file("v").read_bytes() != disk.read_bytes():
                    yield f"{group}: {name}: it reads otherwise"
                rig.run("delete", "v", "--yes", status=0)


def opened(log: Path, tries: list[Try]) -> Iterator[tuple[Try, str]]:
    """Every path that a command or a child of it tried to open, or an address that it tried to connect to."""
    calls = [(int(pid), call.strip()) for pid, _, call in (line.partition(" ") for line in _lines(log))]
    owner = {tried.pid: tried for tried in tries}
    for pid, call in calls:  # a child's first calls may stand before the call that made it
        if pid in owner and (child := BORN.match(call)):
            owner[int(child[1])] = owner[pid]
    for pid, call in calls:
        if pid in owner and call.startswith("connect("):
            yield owner[pid], call
        elif pid in owner and "O_PATH" not in call and (found := OPENED.match(call)):  # O_PATH reads nothing
            yield owner[pid], os.path.join(found["at"] or "/", _unquoted(found["path"]))


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def _unquoted(text: str) -> str:
    """strace writes bytes that are not printable ASCII as C does."""
    return os.fsdecode(text.encode().decode("unicode_escape").encode("latin-1"))


def allowed(tried: Try, path: str, rig: Rig) -> bool:
    """The image that was given (by its name, or what that links to), our state, and the system's own files."""
    own = {str(tried.path), os.path.realpath(tried.path)}
    ours = (str(rig.root), str(REPO), *SYSTEM, os.path.realpath(sys.prefix), sys.prefix, sys.base_prefix)
    return path in own or path in DEVICES or path.startswith(ours)


def page() -> str:
    lines = [
        "# What a hostile image can do",
        "",
        "Nothing. Each of these was made by the tests and given to `volctl create --from-image`, which refused it",
        f"(exit 7) within {SECONDS:g} s of processor time and {MEMORY >> 20} MiB, children included; no volume, no row",
        "and no file was left; and under strace neither volctl nor a child of it tried to open any file but the one",
        "given, its own state and the system's libraries, or to connect to anything. The harmless relatives were",
        "taken, and their volumes read byte for byte as the disk that was put into the image.",
        "`tests/cli/test_attacks.py` does it and writes this page.",
    ]
    for group, attacks in ATTACKS.items():
        rows = [(name, code) for name, (_, code) in attacks.items()]
        lines += ["", f"## {group}", "", *table(("attack", "refused as"), rows), ""]
        lines += ["Taken:", "", *(f"- {name}" for name in HARMLESS[group])]
    return "\n".join(lines) + "\n"


def table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in (head, *rows))
    right = max(len(word) for _, word in (head, *rows))
    cells = [f"| {name.ljust(width)} | {word.ljust(right)} |" for name, word in (head, *rows)]
    return [cells[0], f"| {'-' * width} | {'-' * right} |", *cells[1:]]


def test_no_attack_succeeds_and_no_harmless_relative_is_refused(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "trace"
    zygote = Zygote(under=[strace, "-f", "-y", "-s", "4096", "--seccomp-bpf", "-e", f"trace={TRACE}", "-o", str(log)])
    with empty(zygote, "local", kind="loop") as rig:
        tries = list(attack(rig))
        wrong = list(relatives(rig))
        assert rig.check() == []
        zygote.close()
        wrong += [f"{tried.group}: {tried.name}: {what}" for tried in tries for what in wrong_of(tried)]
        seen = list(opened(log, tries))
        strange = {
            f"{tried.group}: {tried.name}: opened {path}" for tried, path in seen if not allowed(tried, path, rig)
        }
    assert not wrong and not strange, "\n".join([*wrong, *sorted(strange)])
    asked = {tried.name for tried, path in seen if path.startswith("/dev/fd/")}
    assert "qcow2, refcounts of zero" in asked, "strace saw what qemu-img opened"
    looked = {tried.name for tried, path in seen if path == str(tried.path)}
    assert len(looked) == len({tried.name for tried in tries}), "strace saw each image being opened"
    slowest, largest = max(tried.ended.seconds for tried in tries), max(tried.ended.memory for tried in tries)
    print(f"{len(tries)} attacks; at most {slowest:.2f} s and {largest >> 20} MiB")


CHANGES = {
    "grows": "printf more >> {image}",
    "is written to": "printf other | dd of={image} conv=notrunc bs=1 seek=9000 status=none",
    "is replaced": "mv {image}.evil {image}",
    "is cut": "truncate -s 100000 {image}",
}
"""What happens to an image between its check and its copy."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_check_and_copy_is_refused(change: str, when: str, volctl: Volctl) -> None:
    """By a qemu-img that changes it itself, just before or after it copies. Nothing of the copy is left."""
    real = shutil.which("qemu-img")
    disk = corpus.raw(volctl.home / "disk.raw")
    image = corpus.convert(disk, volctl.home / "image", "qcow2")
    corpus.qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", f"{image}.evil", "24M")
    script = volctl.home / "bin" / "qemu-img"
    script.parent.mkdir()
    act = CHANGES[change].format(image=image)
    steps = (act, f'{real} "$@"') if when == "before" else (f'{real} "$@"', act)
    script.write_text("\n".join(["#!/bin/sh", f'test "$1" = convert || exec {real} "$@"', *steps, ""]))
    script.chmod(0o755)
    (volctl.home / "config.toml").write_text("confine_qemu = false\n")
    path = f"{script.parent}:{volctl.environment['PATH']}"
    evil = Volctl(volctl.argv, volctl.home, {**volctl.environment, "PATH": path})
    evil("create", "v", "--from-image", str(image), status=7)
    row = evil("show", "v", "--json").json()
    assert (row["status"], row["fault"]["code"]) == ("error", "image_unsafe")
    assert [name for name in os.listdir(evil.state / "volumes") if name.startswith("volume")] == []


def test_the_page_is_what_the_table_says() -> None:
    if os.environ.get("VOLCTL_WRITE_DOCS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "VOLCTL_WRITE_DOCS=1 writes it anew"

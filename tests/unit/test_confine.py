"""qemu-img in its cage: it does its work, and an evil one does nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LIMIT, Volctl
from tests.unit import image_corpus as corpus
from volctl import command, confine
from volctl.backend import Target
from volctl.command import Limits
from volctl.confine import Cage
from volctl.errors import BackendError
from volctl.files import loopdev
from volctl.images.convert import copy_image, make_image
from volctl.images.gate import open_image
from volctl.service.backends import confinement

EVIL = r"""#!/usr/bin/python3
import ctypes, json, os, socket, sys
port, own, other, target = sys.argv[1:]
said = {}

def attempt(name, act):
    try:
        act()
        said[name] = "done"
    except OSError as error:
        said[name] = type(error).__name__

def connect():
    with socket.socket() as s:
        s.connect(("127.0.0.1", int(port)))

attempt("fork", lambda: os.fork() or os._exit(0))
attempt("vfork", lambda: os.posix_spawn("/bin/true", ["true"], {}))
attempt("connect", connect)
attempt("listen", lambda: socket.socket(socket.AF_UNIX))
attempt("passwd", lambda: open("/etc/passwd").close())
attempt("other", lambda: open(other).close())
attempt("list", lambda: os.listdir(os.path.dirname(own)))
attempt("write source", lambda: open(own, "r+b").close())
attempt("make", lambda: open(os.path.join(os.path.dirname(own), "planted"), "wb").close())
attempt("unlink", lambda: os.unlink(other))
attempt("truncate", lambda: os.truncate(own, 0))
attempt("program", lambda: os.execv(other, [other]))
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("read source", lambda: open(own).close())
attempt("write target", lambda: open(target, "wb").write(b"x"))
ctypes.CDLL(None)
said["setuid"] = "done" if not "NoNewPrivs:\t1" in open("/proc/self/status").read() else "refused"
print(json.dumps(said))
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a qemu-img, first on PATH, that means harm."""
    script = tmp_path / "bin" / "qemu-img"
    script.parent.mkdir()
    script.write_text(EVIL)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield str(server.getsockname()[1])


def qemu_img(*words: str | Path, cage: Cage | None, ok: tuple[int, ...] = (0,)) -> command.Result:
    return command.run("qemu-img", *map(str, words), cage=cage, ok=ok)


def try_everything(place: Path, port: str, cage: Cage | None) -> dict[str, str]:
    own, other, target = (place / name for name in ("own", "other", "target"))
    for path in (own, other, target):
        path.write_text("#!/bin/true\n")
        path.chmod(0o755)
    said: dict[str, str] = json.loads(qemu_img(port, own, other, target, cage=cage).out)
    return said


def needs_landlock() -> None:
    if confine.abi() < 4:
        pytest.skip(f"landlock here has ABI {confine.abi()}, and this needs 4")


def test_an_evil_program_gets_its_source_and_its_target_and_nothing_else(evil: Path, listening: str) -> None:
    needs_landlock()
    cage = Cage(reads=(evil / "own",), writes=(evil / "target",))
    said = try_everything(evil, listening, cage)
    refused = {
        name: word for name, word in said.items() if name not in ("read source", "write target", "kill", "setuid")
    }
    assert set(refused.values()) <= {"PermissionError", "BlockingIOError"}, refused
    assert (said["read source"], said["write target"], said["setuid"]) == ("done", "done", "refused")
    assert said["kill"] == ("PermissionError" if confine.abi() >= 6 else "done")
    assert (evil / "other").exists() and not (evil / "planted").exists()
    assert (evil / "own").read_text() == "#!/bin/true\n"


def test_the_same_program_outside_does_it_all(evil: Path, listening: str) -> None:
    """So that what was refused above was refused by the cage."""
    said = try_everything(evil, listening, None)
    left = {name: word for name, word in said.items() if word != "done"}
    assert left.keys() <= {"unlink", "other", "program"}, left  # the last two: it has unlinked it


def test_without_landlock_there_are_still_no_sockets_and_no_processes(
    evil: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "abi", lambda: 0)
    monkeypatch.setattr(command, "bubblewrap", lambda: None)
    said = try_everything(evil, listening, Cage())
    assert {said[name] for name in ("fork", "vfork", "connect", "listen")} == {"PermissionError"}
    assert (said["passwd"], said["setuid"]) == ("done", "refused")
    assert not any("landlock" in line for line in confine.in_force())


def test_bubblewrap_does_it_where_there_is_no_landlock(
    evil: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made inside is made in a file system of its own."""
    monkeypatch.setattr(confine, "abi", lambda: 0)
    command.bubblewrap.cache_clear()
    try:
        if (wrapper := command.bubblewrap()) is None:
            pytest.skip("bwrap is not installed, or may not make namespaces here")
        said = try_everything(evil, listening, Cage(reads=(evil / "own",), writes=(evil / "target",)))
        assert {said[name] for name in ("fork", "vfork", "connect", "listen")} == {"PermissionError"}
        assert {said[name] for name in ("passwd", "other", "unlink", "program")} == {"FileNotFoundError"}
        assert {said[name] for name in ("write source", "truncate")} == {"OSError"}, "read-only"
        assert (said["read source"], said["write target"], said["setuid"]) == ("done", "done", "refused")
        assert (evil / "target").read_text() == "x"
        assert (evil / "other").exists() and not (evil / "planted").exists()
        assert "bubblewrap: only its source and target, no network" in confine.in_force(wrapper)
        spins = command.run("sh", "-c", "while :; do :; done", ok=range(-64, 256), cage=Cage(), limits=Limits(cpu=1))
        assert spins.status == -signal.SIGXCPU, "as it is told without bubblewrap"
        does_its_work(evil)
    finally:
        command.bubblewrap.cache_clear()


def test_bubblewrap_is_to_mount_on_no_link(tmp_path: Path) -> None:
    """Newer ones refuse it; a program that is a link elsewhere is there, and so is what it leads to."""
    ours, theirs = tmp_path / "program", tmp_path / "link"
    ours.touch()
    theirs.symlink_to(ours)
    assert {str(ours), str(theirs)} <= set(confine.walls("bwrap", Cage(), str(theirs)))
    assert "/usr/bin/sh" not in confine.walls("bwrap", Cage(), "/usr/bin/sh")


def does_its_work(place: Path) -> None:
    """The real one, by descriptor and by path, as the copy of an image does."""
    (place / "bin" / "qemu-img").unlink()
    disk = corpus.raw(place / "disk.raw")
    image = corpus.convert(disk, place / "image", "qcow2")
    (place / "volume").write_bytes(bytes(corpus.DISK))
    with open_image(str(image)) as checked:
        copy_image(checked, Target(place / "volume", "raw", zeroed=True), lambda done, total: None)
    assert (place / "volume").read_bytes() == disk.read_bytes()


def test_a_confined_program_that_lasts_is_ended() -> None:
    """Signals go in, though none comes out."""
    began = time.monotonic()
    with pytest.raises(BackendError, match="did not end within"):
        command.run("sleep", 600, cage=Cage(), timeout=0.5)
    assert time.monotonic() - began < LIMIT / 2 and not command.children_left()


def test_a_compressing_copy_stays_in_its_memory(tmp_path: Path) -> None:
    """With clusters of 2 MiB, sixteen at once."""
    disk = corpus.raw(tmp_path / "disk.raw", 200 * corpus.MiB)
    image = corpus.convert(disk, tmp_path / "image", "qcow2", "-c", "-o", "cluster_size=2M")
    with open_image(str(image)) as checked:
        (tmp_path / "volume").write_bytes(bytes(checked.virtual_size))
        copy_image(checked, Target(tmp_path / "volume", "raw", zeroed=True), lambda done, total: None)
    with (tmp_path / "again").open("w+b") as file:
        source = Target(tmp_path / "volume", "raw", zeroed=False)
        make_image(source, file.fileno(), "qcow2", lambda done, total: None, compress=True)
    corpus.qemu_img("compare", "-f", "raw", "-F", "qcow2", disk, tmp_path / "again")


def test_where_nobody_wants_it(evil: Path, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "confined", False)
    assert try_everything(evil, listening, Cage())["passwd"] == "done"
    assert confinement() == ["nothing (confine_qemu = false)"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return corpus.raw(tmp_path / "disk.raw")


def test_a_chain_of_overlays_in_one_directory(disk: Path, tmp_path: Path) -> None:
    corpus.convert(disk, tmp_path / "base", "qcow2")
    corpus.qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", "base", tmp_path / "middle")
    corpus.qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", "middle", tmp_path / "top")
    words = ("convert", "-f", "qcow2", "-O", "raw", tmp_path / "top", tmp_path / "out" / "flat")
    (tmp_path / "out").mkdir()
    whole = Cage(reads=(tmp_path / "top", tmp_path / "middle", tmp_path / "base"), writes=(tmp_path / "out",))
    qemu_img(*words, cage=whole)
    assert (tmp_path / "out" / "flat").read_bytes() == disk.read_bytes()
    needs_landlock()
    part = qemu_img(*words, cage=Cage(reads=(tmp_path / "top",), writes=(tmp_path / "out",)), ok=(1,))
    assert "Permission denied" in part.err
    qemu_img("info", "--backing-chain", "-f", "qcow2", tmp_path / "top", cage=Cage(reads=(tmp_path,)))


@pytest.mark.root
def test_a_block_device_as_source_and_target(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "volume").write_bytes(bytes(corpus.DISK))
    with (tmp_path / "volume").open("r+b") as file:
        device = loopdev.attach(file.fileno(), "test", read_only=False, sector_size=None)
    try:
        to = ("convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", disk, device.node)
        qemu_img(*to, cage=Cage(reads=(disk,), writes=(device.node,)))
        back = ("convert", "-f", "raw", "-O", "qcow2", device.node, tmp_path / "back")
        (tmp_path / "back").touch()
        qemu_img(*back, cage=Cage(reads=(device.node,), writes=(tmp_path / "back",)))
    finally:
        loopdev.detach(device)
    corpus.qemu_img("compare", "-f", "raw", "-F", "qcow2", disk, tmp_path / "back")


def test_an_ordinary_user(as_user: Volctl) -> None:
    """Through the command line; nothing of this takes rights."""
    disk = corpus.raw(as_user.home / "disk.raw")
    image = corpus.convert(disk, as_user.home / "disk.qcow2", "qcow2")
    image.chmod(0o644)
    as_user("create", "v", "--from-image", str(image))
    shown = as_user("backend", "show", "local", "--json").json()
    assert "no new privileges" in shown["details"]["qemu_img_confined_by"]


def test_the_command_line_confines_qemu_img(volctl: Volctl) -> None:
    """A qemu-img that looks around sees nothing, leaves nothing, and its nonsense is told as such."""
    needs_landlock()
    corpus.convert(corpus.raw(volctl.home / "disk.raw"), volctl.home / "disk.qcow2", "qcow2")
    script = volctl.home / "bin" / "qemu-img"
    script.parent.mkdir()
    script.write_text(
        f"#!/bin/sh\nread line < /etc/passwd\necho ${{line:-nothing}} > {volctl.home}/planted\necho $line\n"
    )
    script.chmod(0o755)
    path = f"{script.parent}:{volctl.environment['PATH']}"
    with_evil = Volctl(volctl.argv, volctl.home, {**volctl.environment, "PATH": path})
    told = with_evil("create", "v", "--from-image", "disk.qcow2", status=8).err
    assert "root:x" not in told and "qemu-img" in told
    assert not (volctl.home / "planted").exists()
    assert volctl("list", "--json").json() == []

"""image save: a volume or a snapshot becomes an image again, byte for byte, or nothing is left."""

from __future__ import annotations

import json
import os
import pty
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MiB
from tests.conftest import LIMIT, Volctl, tmpfs
from volctl.images.save import FORMATS

SIZE = 6 * MiB


def content(seed: int = 1) -> bytes:
    """Data that does not compress at both ends, and a hole between."""
    numbers = random.Random(seed)
    return numbers.randbytes(MiB) + bytes(SIZE - 2 * MiB) + numbers.randbytes(MiB)


@pytest.fixture
def saved(cli: Cli) -> Cli:
    """With a volume `v` that reads as `content()`."""
    cli.volume("v", "--size", "6M")
    cli.fill("v", content())
    return cli


def left(home: Path) -> list[str]:
    """What a save may not leave beside its file."""
    return [name for name in os.listdir(home) if name.startswith(".volctl")]


WAYS = [("raw",), ("qcow2",), ("qcow2", "--compress")]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("source", ["v", "s"])
def test_there_and_back(way: tuple[str, ...], source: str, saved: Cli) -> None:
    if source == "s":
        saved("snapshot", "create", "v", "s")
        saved.fill("v", content(2))
    made = saved.json("image", "save", source, "out", "--format", *way)
    file = saved.home / "out"
    assert made == {
        "path": str(file), "format": way[0], "size": file.stat().st_size, "virtual_size": SIZE,
        "source": {"kind": "volume" if source == "v" else "snapshot", "id": made["source"]["id"], "name": source},
    }  # fmt: skip
    assert file.stat().st_blocks * 512 <= 3 * MiB
    assert left(saved.home) == []
    assert saved.json("image", "check", "out")["format"] == way[0]
    saved.json("create", "again", "--from-image", "out")
    assert saved.file("again").read_bytes() == content()
    assert saved.events(made["source"]["id"])[-1] == "image.save"


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_from_overlays(way: tuple[str, ...], cli: Cli) -> None:
    """Of the backend qcow2, where a volume is several files, one over another."""
    pool = cli.home / "pool"
    pool.mkdir()
    cli.configure(f'[[backend]]\nname = "p"\nkind = "qcow2"\ndirectory = "{pool}"\n')
    cli("backend", "init", "p", "--yes")
    (cli.home / "disk").write_bytes(content())
    cli.json("create", "v", "--from-image", "disk")
    cli("snapshot", "create", "v", "s")
    cli.json("create", "w", "--from-snapshot", "s", "--size", "8M")
    for source in ("v", "s", "w"):
        made = cli.json("image", "save", source, f"out-{source}", "--format", *way)
        cli.json("create", f"again-{source}", "--from-image", f"out-{source}")
        cli("image", "save", f"again-{source}", f"raw-{source}")
        assert (cli.home / f"raw-{source}").read_bytes() == content().ljust(made["virtual_size"], b"\0")


def test_raw_is_the_bytes_and_compressed_is_smaller(saved: Cli) -> None:
    saved("image", "save", "v", "raw")
    assert (saved.home / "raw").read_bytes() == content()
    saved.fill("v", b"text " * (MiB // 5), at=2 * MiB)
    saved("image", "save", "v", "plain", "--format", "qcow2")
    saved("image", "save", "v", "packed", "--format", "qcow2", "--compress")
    assert (saved.home / "packed").stat().st_size < (saved.home / "plain").stat().st_size - MiB // 2


def test_its_mode_is_what_the_user_wants_of_new_files(saved: Cli) -> None:
    before = os.umask(0o027)
    try:
        saved("image", "save", "v", "out")
    finally:
        os.umask(before)
    assert (saved.home / "out").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "name", ["--help", "json:{}", "nbd:a:1", "a b", "-", "line\nbreak", "x" * 255, os.fsdecode(b"\xff\xfe")]
)
def test_names(name: str, saved: Cli) -> None:
    path = f"./{name}" if name == "-" else name
    saved("image", "save", "--format", "qcow2", "--", "v", path)
    assert (saved.home / name).stat().st_size > 2 * MiB
    assert left(saved.home) == []


def test_what_is_there_stays_unless_forced(saved: Cli) -> None:
    file = saved.home / "out"
    file.write_bytes(b"precious")
    error = saved.refused(5, "exists", "image", "save", "v", "out")
    assert "--force" in error["hint"]
    assert file.read_bytes() == b"precious"
    saved("image", "save", "v", "out", "--force")
    assert file.read_bytes() == content()


def test_a_link_is_replaced_and_what_it_names_is_not_written(saved: Cli) -> None:
    (saved.home / "precious").write_bytes(b"precious")
    for target in ("precious", "nothing"):
        link = saved.home / "link"
        link.symlink_to(target)
        saved.refused(5, "exists", "image", "save", "v", "link")
        saved("image", "save", "v", "link", "--force")
        assert not link.is_symlink() and link.read_bytes() == content()
        link.unlink()
    assert (saved.home / "precious").read_bytes() == b"precious"
    assert not (saved.home / "nothing").exists()


def test_places_that_are_none(saved: Cli) -> None:
    os.mkfifo(saved.home / "fifo")
    (saved.home / "directory").mkdir()
    for path in ("directory", "fifo", "/dev/null", "config.toml/x", "", "directory/", "a\0b", "x" * 256):
        saved.refused(2, "usage", "image", "save", "v", path, "--force")
    saved.refused(4, "not_found", "image", "save", "v", "nowhere/out")
    for path in ("state/volctl.db", "state/volumes/x", "state/new"):
        saved.refused(2, "usage", "image", "save", "v", path, "--force")


def test_wrong_words(saved: Cli) -> None:
    saved.refused(2, "usage", "image", "save", "v", "out", "--format", "vmdk")
    saved.refused(2, "usage", "image", "save", "v", "out", "--compress")
    saved.refused(2, "usage", "image", "save", "v", "-", "--format", "qcow2")
    saved.refused(4, "not_found", "image", "save", "nothing", "out")
    assert FORMATS == ("raw", "qcow2")


def test_the_name_of_a_volume_and_of_a_snapshot(saved: Cli) -> None:
    snapshot = saved.json("snapshot", "create", "v", "v")
    assert "and a snapshot" in saved.refused(4, "ambiguous", "image", "save", "v", "out")["message"]
    saved("image", "save", snapshot["id"], "out")


def test_wrong_status(saved: Cli) -> None:
    snapshot = saved.json("snapshot", "create", "v", "s")
    with closing(sqlite3.connect(saved.state / "volctl.db")) as database, database:
        database.execute("UPDATE snapshots SET status = 'error' WHERE id = ?", (snapshot["id"],))
        database.execute("UPDATE volumes SET status = 'error'")
    for ref in ("v", "s"):
        assert "is error" in saved.refused(5, "conflict", "image", "save", ref, "out")["message"]


def test_content_that_is_gone(saved: Cli) -> None:
    saved.file("v").unlink()
    saved.error(4, "not_found", "image", "save", "v", "out")
    assert left(saved.home) == [] and not (saved.home / "out").exists()


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Another program has it open."""
    words = [sys.executable, "-c", f"f = open({str(file)!r}, 'r+b'); print(flush=True); input()"]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.communicate(b"\n")


def test_a_volume_in_use_is_not_saved_but_its_snapshot_is(streaming: Volctl) -> None:
    streaming("snapshot", "create", "v", "s")
    with writing(Path(streaming("path", "v").out.strip())):
        told = streaming("image", "save", "v", "out", status=5).err
        assert "in use by python" in told and "stop what uses it" in told
        streaming("image", "save", "s", "out")
    assert (streaming.home / "out").read_bytes() == content()


def test_the_hint_is_a_snapshot_where_one_can_be_taken(volctl: Volctl) -> None:
    pool = volctl.home / "pool"
    pool.mkdir()
    (volctl.home / "config.toml").write_text(
        f'[[backend]]\nname = "p"\nkind = "fake"\ndirectory = "{pool}"\nclone = "share"\n'
    )
    volctl("backend", "init", "p", "--yes")
    volctl("create", "v", "--size", "1M")
    with writing(Path(volctl("path", "v").out.strip())):
        assert "volctl snapshot create v" in volctl("image", "save", "v", "out", status=5).err


# -- standard output


def run(volctl: Volctl, *words: str, stdout: int | None = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*volctl.argv, *words], env=dict(volctl.environment), cwd=volctl.home, stdout=stdout, stderr=subprocess.PIPE
    )


@pytest.fixture
def streaming(volctl: Volctl) -> Volctl:
    volctl("create", "v", "--size", "6M")
    with Path(volctl("path", "v").out.strip()).open("r+b") as file:
        file.write(content())
    return volctl


def test_to_standard_output(streaming: Volctl) -> None:
    program = run(streaming, "image", "save", "v", "-", "--json")
    assert program.communicate()[0] == content()
    assert program.returncode == 0


def test_a_reader_that_leaves(streaming: Volctl) -> None:
    """As with every program of a pipeline: quietly, but it was not done."""
    program = run(streaming, "image", "save", "v", "-")
    assert program.stdout and program.stderr
    program.stdout.read(10)
    program.stdout.close()
    assert program.wait() == 128 + signal.SIGPIPE
    assert program.stderr.read() == b""
    program.stderr.close()
    assert streaming("flow", "list", "--json").json()[0]["phase"] == "undone"


def test_a_full_standard_output(streaming: Volctl) -> None:
    with open("/dev/full", "wb") as full:
        program = run(streaming, "image", "save", "v", "-", stdout=full.fileno())
        _, told = program.communicate()
    assert program.returncode == 1
    assert told == b"volctl: standard output cannot be written: No space left on device\n"


def test_a_file_takes_a_stream(streaming: Volctl) -> None:
    with (streaming.home / "out").open("wb") as file:
        file.write(b"before")
        file.flush()
        program = run(streaming, "image", "save", "v", "-", stdout=file.fileno())
        program.communicate()
    assert program.returncode == 0
    assert (streaming.home / "out").read_bytes() == b"before" + content()


def test_a_terminal_is_no_place_for_a_disk(streaming: Volctl) -> None:
    master, slave = pty.openpty()
    program = run(streaming, "image", "save", "v", "-", stdout=slave)
    os.close(slave)
    _, told = program.communicate()
    os.close(master)
    assert (program.returncode, b"terminal" in told) == (2, True)


def test_a_reader_that_waits_keeps_no_signal_away(streaming: Volctl) -> None:
    program = run(streaming, "image", "save", "v", "-")
    assert program.stdout
    program.stdout.read(10)
    program.send_signal(signal.SIGINT)
    assert program.wait(LIMIT) == 130
    program.communicate()


def test_a_qcow2_goes_out_as_raw_bytes(tmp_path: Path) -> None:
    """Through a nameless file, which nobody need remove."""
    from volctl.backend import Target
    from volctl.images.save import stream

    (tmp_path / "raw").write_bytes(content())
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "raw", "image"]
    subprocess.run(words, cwd=tmp_path, check=True)
    reader, writer = os.pipe()
    got: list[bytes] = []
    with os.fdopen(reader, "rb") as pipe:
        collect = threading.Thread(target=lambda: got.append(pipe.read()))
        collect.start()
        stream(Target(tmp_path / "image", "qcow2", zeroed=False), writer, tmp_path, lambda done, total: None)
        os.close(writer)
        collect.join()
    assert got == [content()]
    assert sorted(os.listdir(tmp_path)) == ["image", "raw"]


# -- trouble


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with 1 MiB."""
    with tmpfs(tmp_path / "small", "1m") as place:
        yield place


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_full_disk(way: tuple[str, ...], saved: Cli, small: Path) -> None:
    saved.error(6, "no_space", "image", "save", "v", small / "out", "--format", *way)
    assert os.listdir(small) == []


def test_a_directory_of_others(as_user: Volctl) -> None:
    as_user("create", "v", "--size", "1M")
    told = as_user("image", "save", "v", "/etc/out", "--json", status=9).err
    assert json.loads(told.splitlines()[-1])["error"]["code"] == "permission"


@pytest.fixture
def slow(streaming: Volctl, tmp_path: Path) -> Volctl:
    """One save that takes longer than a test waits for it to be stopped."""
    (tmp_path / "config.toml").write_text(
        f'[[backend]]\nname = "local"\nkind = "fake"\ndirectory = "{streaming.state}/volumes"\n'
    )
    (streaming.state / "volumes" / "fail").write_text(json.dumps({"reading": {"pause": LIMIT, "times": 1}}))
    return streaming


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_save_that_is_ended_leaves_nothing(signum: signal.Signals, status: int, slow: Volctl) -> None:
    before = set(os.listdir(slow.home))
    program = run(slow, "image", "save", "v", "out")
    while not [row for row in flows(slow) if row == "running"]:
        assert program.poll() is None
    program.send_signal(signum)
    assert program.wait(LIMIT) == status
    program.communicate()
    slow("list")
    assert set(os.listdir(slow.home)) == before
    (slow.state / "volumes" / "fail").unlink()  # it may have been ended before it read
    slow("image", "save", "v", "out")


def flows(volctl: Volctl) -> list[str]:
    with closing(sqlite3.connect(volctl.state / "volctl.db")) as database:
        return [phase for (phase,) in database.execute("SELECT phase FROM flows WHERE name = 'image_save'")]


def begun(volctl: Volctl, file: Path) -> Path:
    """Die while saving; the temporary file that is left."""
    program = run(volctl, "image", "save", "v", str(file))
    while not [row for row in flows(volctl) if row == "running"]:
        assert program.poll() is None
    program.kill()
    program.communicate()
    with closing(sqlite3.connect(volctl.state / "volctl.db")) as database:
        ((plan,),) = database.execute("SELECT plan FROM journal WHERE task = 'WriteImageTask' AND state = 'begun'")
    temporary = Path(json.loads(plan)["file"])
    temporary.write_bytes(b"half")
    return temporary


def test_a_directory_that_was_removed_since_is_no_trouble(slow: Volctl) -> None:
    place = slow.home / "place"
    place.mkdir()
    begun(slow, place / "out")
    shutil.rmtree(place)
    assert "image_save of" in slow("list").err
    assert flows(slow)[-1] == "undone"


@pytest.mark.root
def test_a_file_system_that_is_not_mounted_is_waited_for(slow: Volctl) -> None:
    place = slow.home / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        temporary = begun(slow, place / "out")
        kept = slow.home / "kept"
        kept.mkdir()
        subprocess.run(["mount", "--move", place, kept], check=True)
        assert "not mounted" in slow("list").err
        assert flows(slow)[-1] == "stuck"
        subprocess.run(["mount", "--move", kept, place], check=True)
        assert temporary.exists()
        stuck = slow("flow", "list", "--json").json()[0]
        slow("flow", "retry", stuck["id"])
        assert os.listdir(place) == []
    finally:
        subprocess.run(["umount", "-R", place], check=False)


def test_two_at_once_for_one_name(streaming: Volctl) -> None:
    """One of them makes it; the other's copy goes. Neither takes the other for dead, though they share the source."""
    programs = [run(streaming, "image", "save", "v", "out") for _ in range(3)]
    said = [program.communicate()[1] for program in programs]
    assert sorted(program.returncode for program in programs) == [0, 5, 5]
    assert b"settled" not in b"".join(said)
    assert (streaming.home / "out").read_bytes() == content()
    assert left(streaming.home) == []


@pytest.mark.root
def test_blocks_are_shared_where_the_file_system_can(reflink_mount: Path, volctl: Volctl) -> None:
    state = reflink_mount / "state"
    state.mkdir(mode=0o700)
    shared = Volctl(volctl.argv, volctl.home, {**volctl.environment, "VOLCTL_STATE_DIR": str(state)})
    shared("create", "v", "--size", "200M")
    volume = Path(shared("path", "v").out.strip())
    with volume.open("r+b") as file:
        file.write(random.Random(3).randbytes(200 * MiB))
        os.fsync(file.fileno())
    before = shutil.disk_usage(reflink_mount).used
    for name in ("one", "two"):
        shared("image", "save", "v", str(reflink_mount / name))
    os.sync()
    assert shutil.disk_usage(reflink_mount).used - before < 50 * MiB
    subprocess.run(["cmp", volume, reflink_mount / "two"], check=True)


def test_standard_output_is_not_replaced(saved: Cli) -> None:
    """Whatever leads there, and though it is a regular file here."""
    (saved.home / "direct").symlink_to("/proc/self/fd/1")
    (saved.home / "further").symlink_to("direct")
    for name in ("direct", "further", "/dev/stdout"):
        error = saved.refused(2, "usage", "image", "save", "v", name, "--force")
        assert "`-`" in error["hint"]
    assert (saved.home / "further").is_symlink() and Path("/dev/stdout").is_symlink()


def test_what_is_replaced_leaves_its_mode(saved: Cli) -> None:
    file = saved.home / "out"
    file.write_bytes(b"old")
    file.chmod(0o600)
    saved("image", "save", "v", "out", "--force")
    assert file.read_bytes() == content() and file.stat().st_mode & 0o7777 == 0o600

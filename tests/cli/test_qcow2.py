"""Volumes as qcow2 files, through the command line, by whoever runs the tests."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests import qcow2_files
from tests.conftest import Volctl
from volctl import held
from volctl.db import volumes as rows
from volctl.engine.locks import EXCLUSIVE
from volctl.errors import LockedError
from volctl.service import Options, Watcher, open_session

MiB = 1024**2


@pytest.fixture
def disks(volctl: Volctl) -> Volctl:
    """With the backend `disks` of qcow2 files, then `files` of raw ones."""
    tables = [f'[[backend]]\nname = "{name}"\nkind = "{kind}"\ndirectory = "{volctl.home}/{name}"\n'
              for name, kind in (("disks", "qcow2"), ("files", "loop"))]  # fmt: skip
    (volctl.home / "config.toml").write_text("".join(tables))
    for name in ("disks", "files"):
        volctl("backend", "init", name, "-y")
    return volctl


def path(volctl: Volctl, name: str) -> Path:
    return Path(volctl("path", name).out.strip())


def write(volctl: Volctl, name: str, data: bytes) -> None:
    qcow2_files.write(path(volctl, name), 0, data)


def reads(volctl: Volctl, name: str) -> bytes:
    return qcow2_files.read(path(volctl, name)).rstrip(b"\0")


def test_a_day_in_the_life(disks: Volctl) -> None:
    disks("create", "v", "--size", "2M", "--backend", "disks")
    write(disks, "v", b"one")
    disks("snapshot", "create", "v", "s1")
    write(disks, "v", b"two")
    disks("create", "c", "--from-snapshot", "s1", "--size", "4M")
    disks("create", "d", "--from-volume", "v")
    disks("extend", "v", "3M")
    disks("snapshot", "create", "v", "s2")
    write(disks, "v", b"three")
    assert [reads(disks, name) for name in "vcd"] == [b"three", b"one", b"two"]
    assert not path(disks, "c").parent.samefile(disks.home / "files")
    names = [qcow2_files.backing(path(disks, name)) for name in "vcd"]
    assert all(name and "/" not in name and name.startswith("layer-") for name in names)
    info = qcow2_files.info(path(disks, "v"))
    assert (info["virtual-size"], info["backing-filename-format"]) == (3 * MiB, "qcow2")
    disks("revert", "v", "s1", "-y")
    disks("snapshot", "delete", "s1", "-y")
    details = disks("backend", "show", "disks", "--json").json()["details"]
    assert details["hidden_layers"] >= 1 and details["hidden_size"] > 0
    assert [reads(disks, name) for name in "vcd"] == [b"one", b"one", b"two"]
    disks("delete", "v", "--cascade", "-y")
    assert [reads(disks, name) for name in "cd"] == [b"one", b"two"]
    disks("delete", "c", "d", "-y")
    assert [file.name for file in (disks.home / "disks").iterdir()] == [".volctl"]
    assert disks("doctor").status == 0


def test_a_copy_to_another_backend_reads_the_whole_chain(disks: Volctl) -> None:
    disks("create", "v", "--size", "1M", "--backend", "disks")
    write(disks, "v", b"one")
    disks("snapshot", "create", "v", "s")
    disks("create", "raw", "--from-snapshot", "s", "--size", "2M", "--backend", "files")
    disks("create", "back", "--from-volume", "raw", "--backend", "disks")
    assert path(disks, "raw").read_bytes() == b"one".ljust(2 * MiB, b"\0") and reads(disks, "back") == b"one"


def test_a_clone_is_locked_with_its_whole_tree_and_with_nothing_else(disks: Volctl) -> None:
    made = {}
    for name, *words in ("v", "--size", "1M"), ("c", "--from-volume", "v"), ("d", "--from-volume", "c"):
        made[name] = disks("create", name, *words, "--backend", "disks", "--json").json()["id"]
    made["raw"] = disks("create", "raw", "--from-volume", "v", "--backend", "files", "--json").json()["id"]
    options = Options(str(disks.home / "config.toml"), str(disks.state))
    with open_session(options, Watcher()) as session:
        with session.store.read() as tx:
            locks = {name: rows.lock_names(tx, volume) for name, volume in made.items()}
        root = made["v"]
        assert locks == {"v": [root], "c": [made["c"], root], "d": [made["d"], root], "raw": [made["raw"]]}
        with session.locked({root: EXCLUSIVE}):
            for refused in (
                ("delete", "d", "-y"), ("extend", "c", "2M"), ("snapshot", "create", "c"),
                ("create", "--from-volume", "d"),
            ):  # fmt: skip
                disks(*refused, "--lock-timeout", "0", status=10)
            disks("extend", "raw", "2M", "--lock-timeout", "0")


def test_a_volume_that_joins_a_tree_while_somebody_waits_for_it_is_locked_with_the_tree(disks: Volctl) -> None:
    """As a clone does between its row and the end of its create."""
    root, clone = (disks("create", name, "--size", "1M", "--json").json()["id"] for name in "vc")
    options = Options(str(disks.home / "config.toml"), str(disks.state), lock_timeout=30)
    with open_session(options, Watcher()) as session, ThreadPoolExecutor() as pool:
        with session.locked({clone: EXCLUSIVE}):
            waiting = pool.submit(elsewhere, options, clone)
            time.sleep(0.3)
            with session.store.write() as tx:
                rows.change(tx, clone, tree=root)
        assert waiting.result() == {clone: EXCLUSIVE, root: EXCLUSIVE}
        with session.locked({root: EXCLUSIVE}), pytest.raises(LockedError):
            elsewhere(replace(options, lock_timeout=0.1), clone)
        assert held.locks == set()


def elsewhere(options: Options, volume: str) -> dict[str, str]:
    with open_session(options, Watcher()) as session, session.locked_volume(volume) as locks:
        return locks.names


def test_what_others_have_open_is_neither_frozen_nor_deleted(disks: Volctl) -> None:
    disks("create", "v", "--size", "1M", "--backend", "disks")
    command = ["qemu-io", "-f", "qcow2", str(path(disks, "v"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdin and guest.stdout
        guest.stdin.write(b"read 0 512\n")
        guest.stdin.flush()
        guest.stdout.readline()
        for words in (("snapshot", "create", "v"), ("create", "--from-volume", "v"), ("delete", "v", "-y")):
            refused = disks(*words, "--json", status=5)
            told = json.loads(refused.err.splitlines()[-1])["error"]
            assert f"qemu-io (pid {guest.pid})" in told["message"]
        guest.stdin.close()
    disks("delete", "v", "-y")


def test_a_file_that_was_swapped_is_not_opened(disks: Volctl) -> None:
    secret = disks.home / "secret"
    secret.write_bytes(b"not yours".ljust(MiB, b"\0"))
    disks("create", "v", "--size", "1M", "--backend", "disks")
    file = path(disks, "v")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, file, "1M"], check=True)
    for words in (
        ("snapshot", "create", "v"),
        ("extend", "v", "2M"),
        ("create", "--from-volume", "v", "--backend", "files"),
    ):
        refused = disks(*words, status=None)
        assert refused.status in (1, 8) and "was changed by somebody" in refused.err, refused
    assert file.stat().st_size < MiB


def test_a_damaged_clone_is_not_in_the_way_of_another(disks: Volctl) -> None:
    """The layer of both stays for the damaged one, which nobody can merge, and goes with it."""
    disks("create", "v", "--size", "1M", "--backend", "disks")
    disks("snapshot", "create", "v", "s")
    disks("create", "w", "--from-snapshot", "s")
    disks("snapshot", "delete", "s", "-y")
    damaged = path(disks, "w").read_bytes()
    path(disks, "w").write_bytes(damaged[:50])
    disks("delete", "v", "-y")
    assert list((disks.home / "disks").glob("layer-*"))
    path(disks, "w").write_bytes(damaged)
    assert reads(disks, "w") == b""
    disks("delete", "w", "-y")
    assert [file.name for file in (disks.home / "disks").iterdir()] == [".volctl"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cluster_size", "3K"), ("cluster_size", 65536), ("cluster_size", "4M"), ("extended_l2", "yes"),
        ("lazy_refcounts", 1), ("preallocation", "full"), ("compression", "lz4"), ("clustersize", "64K"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_told(volctl: Volctl, option: str, value: object) -> None:
    table = f'[[backend]]\nname = "disks"\nkind = "qcow2"\ndirectory = "{volctl.home}/disks"\n'
    (volctl.home / "config.toml").write_text(f"{table}{option} = {json.dumps(value)}\n")
    assert option in volctl("list", status=None).err or option in volctl("backend", "list", status=2).err


def test_options_are_in_the_files(volctl: Volctl) -> None:
    table = f'[[backend]]\nname = "disks"\nkind = "qcow2"\ndirectory = "{volctl.home}/disks"\nmode = "0640"\n'
    more = 'cluster_size = "128K"\nextended_l2 = true\nlazy_refcounts = true\npreallocation = "metadata"\n'
    (volctl.home / "config.toml").write_text(table + more + 'compression = "zstd"\n')
    volctl("backend", "init", "disks", "-y")
    raw = volctl.home / "disk.raw"
    raw.write_bytes(b"compresses well " * 65536)
    volctl("create", "v", "--size", "8M")
    volctl("create", "w", "--from-image", raw)
    for name in "vw":
        details = qcow2_files.info(path(volctl, name))["format-specific"]["data"]
        assert details["extended-l2"] and details["lazy-refcounts"]
        assert path(volctl, name).stat().st_mode & 0o777 == 0o640
    (base,) = (volctl.home / "disks").glob("image-*")
    info = qcow2_files.info(base)
    assert info["format-specific"]["data"]["compression-type"] == "zstd" and info["cluster-size"] == 131072
    assert base.stat().st_size < MiB and qcow2_files.read(path(volctl, "w")) == raw.read_bytes()

"""Create: the four branches on every kind of file system, sizes, --if-absent, --count, --dry-run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, GiB, MiB, make_cli, make_image, zeros
from tests.conftest import Volctl
from tests.web import until

FIELDS = [
    "id", "name", "project", "description", "size", "status", "fault", "type", "backend", "availability_zone",
    "bootable", "protected", "properties", "source", "attachments", "attempts", "created_at", "available_at",
    "updated_at",
]  # fmt: skip
CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def anywhere(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    reflink_mount: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Cli]:
    """The command line with its state on xfs or btrfs."""
    home = Path(tempfile.mkdtemp(dir=reflink_mount))
    yield make_cli(home, monkeypatch, capsys)
    shutil.rmtree(home)


def digest(path: Path, length: int | None = None) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read() if length is None else file.read(length)).hexdigest()


def test_blank(cli: Cli) -> None:
    made = cli.json("create", "web", "--size", "3M", "--description", "the site", "--property", "role=web")
    assert list(made) == FIELDS
    assert made | {"id": 0, "created_at": 0, "available_at": 0, "updated_at": 0} == {
        "id": 0, "name": "web", "project": "default", "description": "the site", "size": 3 * MiB, "status": "available",
        "fault": None, "type": None, "backend": "local", "availability_zone": "local", "bootable": False,
        "protected": False, "properties": {"role": "web"}, "source": {"kind": "blank", "id": None, "name": None},
        "attachments": [], "attempts": [], "created_at": 0, "available_at": 0, "updated_at": 0,
    }  # fmt: skip
    assert made["created_at"].endswith("Z")
    assert made["created_at"] <= made["available_at"] <= made["updated_at"]
    assert cli.json("show", "web") == made | {"explanation": cli.json("show", "web")["explanation"]}
    file = cli.file("web")
    assert file == cli.pool / f"volume-{made['id']}"
    assert file.stat().st_size == 3 * MiB
    assert file.stat().st_mode & 0o7777 == 0o600
    assert zeros(file, 0)
    assert cli.events("web") == ["volume.status", "create.start", "volume.status", "create.end"]
    assert cli.quota()["gigabytes"]["in_use"] == 3 * MiB


def test_no_name_and_quiet(cli: Cli) -> None:
    ran = cli("create", "--size", "1M", "-q")
    (volume_id,) = ran.out.split()
    assert ran.err == ""
    assert cli.json("show", volume_id)["name"] is None
    assert (cli.pool / f"volume-{volume_id}").stat().st_size == MiB


def branches(cli: Cli) -> None:
    """Every branch: content, tail, size, properties, bootable."""
    image = make_image(cli.home / "disk.qcow2", CONTENT, 4 * MiB)
    cli("image", "add", "debian", image, "--property", "os=debian", "--property", "arch=amd64")
    base = cli.json("create", "base", "--from-image", "debian", "--size", "6M", "--property", "arch=mine")
    assert (base["size"], base["bootable"]) == (6 * MiB, True)
    assert base["properties"] == {"os": "debian", "arch": "mine"}
    assert base["source"] == {"kind": "image", "id": cli.json("image", "show", "debian")["id"], "name": "debian"}
    cli("snapshot", "create", "base", "before")
    cli.fill("base", b"later", 100)
    cli.json("set", "base", "--property", "os=other")
    snapped = cli.json("create", "snapped", "--from-snapshot", "before", "--size", "9M", "--property", "x=1")
    assert snapped["properties"] == {"os": "debian", "arch": "mine", "x": "1"}
    assert snapped["source"]["kind"] == "snapshot"
    cloned = cli.json("create", "cloned", "--from-volume", "base")
    assert cloned["properties"] == {"os": "other", "arch": "mine"}
    assert cloned["source"] == {"kind": "volume", "id": base["id"], "name": "base"}
    sizes = {"base": 6 * MiB, "snapped": 9 * MiB, "cloned": 6 * MiB}
    for name, size in sizes.items():
        assert cli.file(name).stat().st_size == size
        assert cli.json("show", name)["bootable"], name
        assert zeros(cli.file(name), MiB)
    assert digest(cli.file("snapped"), MiB) == hashlib.sha256(CONTENT).hexdigest()
    assert digest(cli.file("cloned")) == digest(cli.file("base")) != digest(cli.file("snapped"), 6 * MiB)


def test_branches(cli: Cli) -> None:
    branches(cli)


@pytest.mark.root
def test_branches_where_clones_share(anywhere: Cli) -> None:
    branches(anywhere)


@pytest.mark.root
def test_a_gibibyte_is_shared(anywhere: Cli) -> None:
    """Snapshot, clones and a raw image on the same file system take no blocks of their own."""
    cli = anywhere
    cli.volume("big", "--size", "1")
    empty = free(cli)
    with cli.file("big").open("r+b") as file:
        block = os.urandom(MiB)
        for number in range(100):
            file.seek(number * 10 * MiB)
            file.write(block)
        os.fsync(file.fileno())
    before = free(cli)
    assert before < empty - 90 * MiB
    cli("snapshot", "create", "big", "s")
    cli("create", "clone", "--from-volume", "big")
    cli("create", "larger", "--from-snapshot", "s", "--size", "2")
    cli("create", "copy", "--from-image", cli.file("big"))
    assert before - free(cli) < 24 * MiB
    for name in ("clone", "copy"):
        subprocess.run(["cmp", cli.file("big"), cli.file(name)], check=True)
    assert cli.file("larger").stat().st_size == 2 * GiB
    cli.fill("clone", b"x" * MiB, 0)
    with cli.file("big").open("rb") as file:
        assert file.read(MiB) == block


def free(cli: Cli) -> int:
    subprocess.run(["sync", "-f", cli.home], check=True)
    room = os.statvfs(cli.home)
    return room.f_bavail * room.f_frsize


def test_holes_stay_holes(cli: Cli) -> None:
    image = make_image(cli.home / "sparse.raw", CONTENT, GiB, "raw")
    cli("create", "a", "--from-image", image)
    cli("create", "b", "--from-volume", "a")
    cli("snapshot", "create", "b", "s")
    cli("create", "c", "--from-snapshot", "s")
    for file in cli.pool.glob("*-*"):
        assert file.stat().st_size == GiB
        assert file.stat().st_blocks * 512 <= 2 * MiB, file


@pytest.mark.parametrize(("given", "size"), [("1.5MB", 2 * MiB), ("1K", MiB), ("1000001kB", 954 * MiB)])
def test_a_rounded_size_is_told(given: str, size: int, cli: Cli) -> None:
    ran = cli("create", "v", "--size", given)
    assert f"{size} bytes" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert cli.json("show", "v")["size"] == cli.file("v").stat().st_size == size


def test_an_exact_size_is_not_told(cli: Cli) -> None:
    assert cli("create", "v", "--size", "1.5M").err != ""
    assert cli("create", "w", "--size", "2M").err == ""
    assert cli("create", "x", "--size", "2048K").err == ""


def test_the_size_of_the_source(cli: Cli) -> None:
    odd = make_image(cli.home / "odd.raw", CONTENT, 2 * MiB + 512, "raw")
    assert cli.volume("a", "--from-image", odd)["size"] == 3 * MiB
    assert zeros(cli.file("a"), MiB)
    assert cli.volume("b", "--from-volume", "a")["size"] == 3 * MiB
    cli("snapshot", "create", "a", "s")
    cli("extend", "a", "5M")
    assert cli.volume("c", "--from-snapshot", "s")["size"] == 3 * MiB


def test_a_granule_larger_than_a_mebibyte(cli: Cli) -> None:
    """Rounded up again when the backend is chosen, in the row and the quota, and told."""
    fake(cli, "granule = 4194304")
    ran = cli("create", "v", "--size", "5M", "--json")
    assert ran.json()["size"] == 8 * MiB
    assert f"{8 * MiB} bytes" in ran.err
    assert cli.quota()["gigabytes"]["in_use"] == 8 * MiB
    cli("quota", "set", "--gigabytes", "1")
    cli("create", "w", "--size", "1013M")  # 1016 M with the granule
    cli.error(6, "quota", "create", "x", "--size", "1M")


def fake(cli: Cli, *options: str, name: str = "fake") -> Path:
    """One fake backend more, prepared."""
    directory = cli.home / f"pool-{name}"
    text = f'[[backend]]\nname = "{name}"\nkind = "fake"\ndirectory = "{directory}"\n' + "\n".join(options) + "\n"
    cli.configure((cli.home / "config.toml").read_text() + text)
    cli("backend", "init", name, "--yes")
    return directory


ABSENT = ("--size", "2M", "--if-absent")


def test_if_absent_makes_and_then_finds(cli: Cli) -> None:
    first = cli.volume("v", *ABSENT)
    before = cli.everything()
    assert cli.volume("v", *ABSENT) == first
    assert cli.everything() == before
    assert cli("create", "v", *ABSENT, "-q").out.split() == [first["id"]]


def test_if_absent_after_growth_and_rounding(cli: Cli) -> None:
    first = cli.volume("v", "--size", "1.5MB", "--if-absent")
    assert cli.volume("v", "--size", "1.5MB", "--if-absent") == first
    cli("extend", "v", "5M")
    assert cli.volume("v", "--size", "1.5MB", "--if-absent")["id"] == first["id"]
    assert cli.volume("v", "--size", "5M", "--if-absent")["id"] == first["id"]


def test_if_absent_names_what_differs(cli: Cli) -> None:
    image = make_image(cli.home / "i.raw", CONTENT, 2 * MiB, "raw")
    cli("type", "create", "gold")
    cli("type", "create", "iron")
    cli.volume("v", "--size", "2M", "--type", "gold")
    for args, word in [
        (("--size", "3M", "--type", "gold"), "size"),
        (("--size", "2M", "--type", "iron"), "type"),
        (("--size", "2M", "--type", "gold", "--from-image", image), "source"),
        (("--size", "3M", "--type", "iron"), "size"),
    ]:
        error = cli.refused(5, "exists", "create", "v", *args, "--if-absent")
        assert word in error["message"]
    cli.volume("w", "--from-image", image)
    assert cli.volume("w", "--from-image", image, "--if-absent")["name"] == "w"
    cli.refused(5, "exists", "create", "w", "--size", "2M", "--if-absent")


def test_without_if_absent_the_name_is_taken(cli: Cli) -> None:
    first = cli.volume("v")
    cli("quota", "set", "--volumes", "1")
    error = cli.refused(5, "exists", "create", "v", "--size", "1M")  # told before quota
    assert first["id"] in error["message"]
    assert error["volume"] == first["id"]


def test_if_absent_makes_a_failed_one_anew(cli: Cli) -> None:
    pool = fake(cli)
    (pool / "fail").write_text('{"create": {"message": "broken", "times": 1}}')
    error = cli.error(8, "backend", "create", "v", *ABSENT)
    failed = cli.json("show", "v")
    assert (failed["status"], failed["id"]) == ("error", error["volume"])
    cli("protect", "v")
    assert cli.refused(5, "conflict", "create", "v", *ABSENT)["volume"] == failed["id"]
    cli("unprotect", "v")
    made = cli.volume("v", *ABSENT)
    assert made["status"] == "available"
    assert made["id"] != failed["id"]
    assert len(cli.json("list")) == 1
    assert cli.quota()["gigabytes"]["in_use"] == 2 * MiB


def test_if_absent_keeps_what_once_held_data(cli: Cli) -> None:
    pool = fake(cli)
    cli.volume("v", *ABSENT)
    cli("snapshot", "create", "v", "s")
    (pool / "fail").write_text('{"revert": {"message": "broken"}}')
    cli("revert", "v", "s", "--yes", status=8)
    assert cli.json("show", "v")["status"] == "error"
    cli.error(5, "conflict", "create", "v", *ABSENT)
    assert cli.json("show", "v")["available_at"]


def test_if_absent_waits_for_another_process(cli: Cli, volctl: Volctl) -> None:
    pool = fake(cli)
    (pool / "fail").write_text(json.dumps({"create": {"wait": str(cli.home / "go")}}))
    other = subprocess.Popen([sys.executable, "-m", "volctl", "create", "v", "--size", "2M"], env=volctl.environment)
    until(lambda: [v["status"] for v in cli.json("list")] == ["creating"])
    threading.Timer(0.5, (cli.home / "go").touch).start()
    found = cli.volume("v", *ABSENT)
    assert other.wait() == 0
    assert found["status"] == "available"
    assert len(cli.json("list")) == 1


def test_if_absent_waits_for_one_that_fails_and_for_one_that_dies(cli: Cli, volctl: Volctl) -> None:
    pool = fake(cli)
    for kill in (False, True):
        go = cli.home / f"go-{kill}"
        order = {"create": {"wait": str(go), "times": 1, "message": "broken"}}
        (pool / "fail").write_text(json.dumps(order))
        command = [sys.executable, "-m", "volctl", "create", "v", "--size", "2M"]
        other = subprocess.Popen(command, env=volctl.environment, stderr=subprocess.DEVNULL)
        until(lambda: [v["status"] for v in cli.json("list")] == ["creating"])
        threading.Timer(0.5, other.kill if kill else go.touch).start()
        found = cli.volume("v", *ABSENT)
        other.wait()
        assert found["status"] == "available"
        assert [v["id"] for v in cli.json("list")] == [found["id"]]
        cli("delete", "v", "--yes")


def test_if_absent_when_the_source_is_gone(cli: Cli) -> None:
    """A script that is run again succeeds though its image, snapshot or volume was removed meanwhile."""
    image = make_image(cli.home / "i.raw", CONTENT, MiB, "raw")
    cli.volume("a", "--from-image", image)
    cli.volume("b", "--from-volume", "a")
    cli("snapshot", "create", "b", "s")
    cli.volume("c", "--from-snapshot", "s")
    image.unlink()
    cli("snapshot", "delete", "s", "--yes")
    cli("set", "a", "--name", "z")
    for name, *source in [("z", "--from-image", image), ("b", "--from-volume", "a"), ("c", "--from-snapshot", "s")]:
        assert cli.volume(name, *map(str, source), "--if-absent")["name"] == name
    cli.refused(4, "not_found", "create", "new", "--from-snapshot", "s", "--if-absent")
    cli.refused(4, "not_found", "create", "c", "--from-snapshot", "t", "--if-absent")


def test_if_absent_needs_a_name(cli: Cli) -> None:
    cli.refused(2, "usage", "create", "--size", "1M", "--if-absent")


def test_count(cli: Cli) -> None:
    made = cli.json("create", "v", "--size", "1M", "--count", "3")
    assert [volume["name"] for volume in made] == ["v-1", "v-2", "v-3"]
    assert [list(volume) for volume in made] == [FIELDS] * 3
    assert len(cli("create", "w", "--size", "1M", "--count", "2", "-q").out.split()) == 2
    again = cli.json("create", "v", "--size", "1M", "--count", "4", "--if-absent")
    assert again[:3] == made
    assert len(cli.json("create", "--size", "1M", "--count", "2")) == 2


def test_count_where_one_fails(cli: Cli) -> None:
    cli.volume("v-2")
    ran = cli("create", "v", "--size", "1M", "--count", "3", "--json", status=3)
    assert [volume["name"] for volume in ran.json()] == ["v-1", "v-3"]
    error = json.loads(ran.err.splitlines()[-1])["error"]
    assert (error["code"], error["exit"]) == ("partial", 3)
    assert [failure["ref"] for failure in error["details"]["failed"]] == ["v-2"]
    assert "there is a volume 'v-2' already" in ran.err
    cli("quota", "set", "--volumes", "5")
    assert len(cli("create", "q", "--size", "1M", "--count", "4", "--json", status=3).json()) == 2


EXPLANATION = ["size", "type", "chosen", "backends"]
VERDICT = ["name", "passed", "filter", "reason", "weights", "total"]


def test_a_dry_run_leaves_nothing(cli: Cli) -> None:
    image = make_image(cli.home / "i.qcow2", CONTENT, 4 * MiB)
    cli.volume("v", "--size", "2M")
    cli("snapshot", "create", "v", "s")
    before = cli.everything()
    for args in ["--size 2M", f"--from-image {image}", "--from-volume v", "--from-snapshot s"]:
        told = cli.json("create", "new", *args.split(), "--dry-run")
        assert list(told) == EXPLANATION
        assert list(told["backends"][0]) == VERDICT
        assert (told["size"], told["chosen"]) == (4 * MiB if "image" in args else 2 * MiB, "local")
    assert "local" in cli("create", "new", "--size", "2M", "-n").out
    assert cli.json("explain", "--size", "2M") == cli.json("create", "--size", "2M", "-n")
    assert cli.everything() == before


def test_a_dry_run_is_refused_as_the_create_would_be(cli: Cli) -> None:
    cli.volume("v", "--size", "2M")
    cli("quota", "set", "--gigabytes", "1")
    cli.refused(5, "exists", "create", "v", "--size", "1M", "-n")
    cli.refused(6, "quota", "create", "w", "--size", "1", "-n")
    cli.refused(2, "usage", "create", "w", "--from-volume", "v", "--size", "1M", "-n")
    cli.refused(4, "not_found", "create", "w", "--size", "1M", "--type", "gold", "-n")
    cli.refused(6, "quota", "create", "w", "--size", "400M", "--count", "3", "-n")


def test_a_dry_run_with_if_absent(cli: Cli) -> None:
    cli.volume("v", *ABSENT)
    before = cli.everything()
    cli("create", "v", *ABSENT, "-n")
    cli.refused(5, "exists", "create", "v", "--size", "9M", "--if-absent", "-n")
    assert cli.everything() == before


def test_a_dry_run_for_which_nothing_passes(cli: Cli) -> None:
    fake(cli, "capacity = 1048576")
    before = cli.everything()
    ran = cli("create", "v", "--size", "100", "-n", "--json", status=6)
    (verdict,) = ran.json()["backends"]
    assert ran.json()["chosen"] is None
    assert (verdict["passed"], verdict["filter"]) == (False, "CapacityFilter")
    assert "ratio" in verdict["reason"]
    assert json.loads(ran.err.splitlines()[-1])["error"]["code"] == "no_backend"
    assert cli.everything() == before


def test_no_backend_is_an_error_that_explains(cli: Cli) -> None:
    fake(cli, "capacity = 1048576")
    error = cli.error(6, "no_backend", "create", "v", "--size", "100")
    assert "CapacityFilter" in error["message"]
    left = cli.json("show", "v")
    assert (left["id"], left["status"], left["fault"]["code"]) == (error["volume"], "error", "no_backend")
    assert left["explanation"] == error["details"]["explanation"]
    assert "create.error" in cli.events("v")
    assert "volume.status" in cli.events("v")


def test_the_next_backend_gets_it(cli: Cli) -> None:
    fake(cli, 'fail = ["create"]', name="bad")
    fake(cli, name="good")
    (cli.home / "pool-bad" / "stats").write_text('{"free": 9000000000000}')
    made = cli.volume("v", "--size", "1M")
    assert made["backend"] == "good"
    assert [attempt["backend"] for attempt in made["attempts"]] == ["bad"]
    assert not list((cli.home / "pool-bad").glob("volume-*"))
    error = cli.error(8, "backend", "create", "w", "--size", "1M", "--max-attempts", "1")
    left = cli.json("show", "w")
    assert (left["status"], left["id"]) == ("error", error["volume"])
    assert [attempt["backend"] for attempt in left["attempts"]] == ["bad"]


@pytest.mark.parametrize(("redirect", "status"), [("> /dev/full", 1), (">&-", 1), ("| true; exit ${PIPESTATUS[0]}", 0)])
def test_the_outcome_does_not_depend_on_stdout(redirect: str, status: int, cli: Cli, volctl: Volctl) -> None:
    command = f'"{sys.executable}" -m volctl create v --size 1M --json {redirect}'
    done = subprocess.run(["bash", "-c", command], env=volctl.environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == (2 if status else 0), done.stderr  # the sentence, and its JSON
    assert cli.json("show", "v")["status"] == "available"


def test_what_a_backend_makes_of_a_size_keeps_the_limits(cli: Cli) -> None:
    fake(cli, "granule = 5368709120\ncapacity = 9223372036854775807")
    cli("quota", "set", "--per-volume-gigabytes", "1")
    cli.error(6, "quota", "create", "v", "--size", "1")
    cli("quota", "set", "--per-volume-gigabytes", "-1")
    cli("type", "create", "small", "--spec", "provisioning:max_vol_size=1")
    assert "5 GiB" in cli.error(2, "usage", "create", "w", "--size", "1", "--type", "small")["message"]
    cli.error(2, "usage", "create", "x", "--size", "8796093022207M")
    assert {volume["status"] for volume in cli.json("list")} == {"error"}

"""Configuration and backends: what is read, what is refused, several backends, markers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MiB, make_image
from tests.conftest import Volctl
from volctl.files import object_named

BACKEND = '[[backend]]\nname = "{name}"\nkind = "{kind}"\ndirectory = "{directory}"\n'

WRONG = [
    ('default_tpye = "x"', "did you mean 'default_type'?"),
    ("max_attempt = 3", "did you mean 'max_attempts'?"),
    ("max_attempts = 0", "max_attempts"),
    ('max_attempts = "3"', "max_attempts"),
    ("max_attempts = true", "max_attempts"),
    ("history_days = -1", "history_days"),
    ("[quota]\nvolume = 3", "did you mean 'volumes'?"),
    ("[quota]\nvolumes = -2", "volumes"),
    ("[quota]\nvolumes = 1.5", "volumes"),
    ("[scheduler]\nfilter = []", "did you mean 'filters'?"),
    ('[scheduler]\nfilters = ["CapacityFilters"]', "CapacityFilter"),
    ("[scheduler]\nweighers = { CapacityWeiger = 1.0 }", "CapacityWeigher"),
    ('[scheduler]\nweighers = { CapacityWeigher = "x" }', "CapacityWeigher"),
    ("[image_cache]\nmax_gigabyte = 1", "did you mean 'max_gigabytes'?"),
    ("[quotas]\nvolumes = 1", "did you mean 'quota'?"),
    ("quota = 3", "quota"),
    ("not toml", "config.toml"),
    ('[[backend]]\nkind = "loop"\ndirectory = "/x"', "not a name"),
    ('[[backend]]\nname = "a b"\nkind = "loop"\ndirectory = "/x"', "not a name"),
    ('[[backend]]\nname = "a"\nkind = "lop"\ndirectory = "/x"', "lop"),
    ('[[backend]]\nname = "a"\nkind = "loop"', "directory"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "relative"', "absolute"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\npreallocat = "off"', "did you mean preallocate?"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\npreallocate = "on"', "preallocate"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\nmode = "rw"', "mode"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\nowner = "no-such-user"', "no-such-user"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\nowner = 99999999999', "99999999999"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\ngroup = 4294967295', "4294967295"),
    ('[[backend]]\nname = "a"\nkind = "qcow2"\ndirectory = "/x"\ngroup = "a\\u0000"', "no such group"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\nreserved_percentage = 101', "reserved_percentage"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\nfilter_function = "1 +"', "position"),
    ("[backend]\nname = 3", "[[backend]]"),
    ("history_days = 1000000", "history_days"),
    ("[images]\nfetch_timeout = 99999999999", "fetch_timeout"),
    ("[quota]\nvolumes_ = 5", "volumes_"),
    (f"max_attempts = 1{'0' * 5000}", "config.toml"),
    (f"max_attempts = {'[' * 3000}", "config.toml"),
    (f"[scheduler]\nweighers = {{ CapacityWeigher = 1{'0' * 400} }}", "too large"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\ncapabilities = { d = 1979-05-27 }', "capabilities"),
    ('[[backend]]\nname = "a"\nkind = "loop"\ndirectory = "/x"\ncapabilities = { d = [nan] }', "capabilities"),
    (BACKEND.format(name="a", kind="loop", directory="/x") * 2, "two backends are named 'a'"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text.replace("\n", " ")[-40:] for text, _ in WRONG])
def test_a_bad_configuration(text: str, said: str, cli: Cli) -> None:
    cli.configure(text + "\n")
    error = cli.refused(2, "config", "create", "v", "--size", "1M")
    assert said in error["message"] + str(error["hint"])
    assert not list(cli.state.rglob("volume-*"))
    ran = cli("config", "check", "--json", status=12)
    assert ran.json()["problems"]


def test_a_good_configuration(cli: Cli) -> None:
    cli("config", "check")
    assert cli.json("config", "check") == {"problems": []}
    cli.configure("max_attempts = 7\n[quota]\nvolumes = 2\n[scheduler]\nweighers = { ChanceWeigher = 1 }\n")
    shown = cli.json("config", "show")
    assert (shown["max_attempts"], shown["quota"], shown["weighers"]) == (7, {"volumes": 2}, {"ChanceWeigher": 1.0})
    assert shown["backends"][0]["name"] == "local"
    assert cli("config", "path").out == f"{cli.home}/config.toml\n"
    assert not cli.state.exists()


def test_precedence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag, then environment, then file, then built in."""
    monkeypatch.setenv("VOLCTL_OUTPUT", "json")
    assert json.loads(cli("list").out) == []
    assert cli("list", "-o", "value").out == ""
    monkeypatch.delenv("VOLCTL_OUTPUT")
    monkeypatch.setenv("VOLCTL_LOCK_TIMEOUT", "soon")
    cli.error(2, "usage", "list")
    cli("list", "--lock-timeout", "1s")
    monkeypatch.delenv("VOLCTL_LOCK_TIMEOUT")
    cli.configure("max_attempts = 7\n")
    assert cli.json("config", "show")["max_attempts"] == 7
    other = cli.home / "other.toml"
    other.write_text("max_attempts = 5\n")
    monkeypatch.setenv("VOLCTL_CONFIG", str(other))
    assert cli.json("config", "show")["max_attempts"] == 5
    monkeypatch.setenv("VOLCTL_CONFIG", str(cli.home / "nothere.toml"))
    cli.error(2, "config", "list")
    monkeypatch.setenv("VOLCTL_PROJECT", "theirs")
    monkeypatch.setenv("VOLCTL_CONFIG", str(other))
    assert cli.volume("v")["project"] == "theirs"
    assert cli.volume("v", "--size", "1M", "--project", "mine")["project"] == "mine"


def test_a_configuration_that_is_no_text(cli: Cli) -> None:
    (cli.home / "config.toml").write_bytes(b"\xff\xfe\x00")
    cli.refused(2, "config", "list")
    (cli.home / "config.toml").unlink()
    (cli.home / "config.toml").mkdir()
    cli.refused(2, "config", "list")


@pytest.mark.parametrize("kinds", [("loop", "loop"), ("fake", "fake"), ("loop", "fake")])
def test_two_backends_on_one_directory(kinds: tuple[str, str], cli: Cli) -> None:
    directory = cli.home / "pool"
    link = cli.home / "link"
    link.symlink_to(directory)
    for second in (directory, f"{directory}/../pool/", link):
        texts = [BACKEND.format(name=name, kind=kind, directory=where)
                 for name, kind, where in zip("ab", kinds, (directory, second), strict=True)]  # fmt: skip
        cli.configure(texts[0])
        cli("backend", "init", "a", "--yes")
        cli.configure("".join(texts))
        error = cli.refused(2, "config", "create", "v", "--size", "1M")
        assert "'a' and 'b'" in error["message"]
        assert "'a' and 'b'" in str(cli("config", "check", "--json", status=12).json())


@pytest.mark.root
@pytest.mark.parametrize("bound", [False, True])
def test_doctor_takes_no_directory_for_two(bound: bool, cli: Cli) -> None:
    """Not by two paths either: each volume would be an orphan on the other backend."""
    directory, other = cli.home / "pool", cli.home / ("other" if bound else "pool")
    cli.configure(BACKEND.format(name="a", kind="loop", directory=directory))
    cli("backend", "init", "a", "--yes")
    cli.volume("v")
    file = cli.file("v")
    cli.configure(
        "".join(
            BACKEND.format(name=name, kind="loop", directory=at)
            for name, at in zip("ab", (directory, other), strict=True)
        )
    )
    other.mkdir(exist_ok=True)
    if bound:
        subprocess.run(["mount", "--bind", directory, other], check=True)
    try:
        for words in (["doctor"], ["doctor", "--fix", "--yes"], ["doctor", "--foreign"], ["backend", "list"]):
            assert "'a' and 'b'" in cli.error(2, "config", *words)["message"]
        assert file.exists()
    finally:
        if bound:
            subprocess.run(["umount", other], check=True)


def two(cli: Cli) -> tuple[Path, Path]:
    directories = cli.home / "a", cli.home / "b"
    kinds = zip("ab", ("loop", "fake"), directories, strict=True)
    cli.configure("".join(BACKEND.format(name=name, kind=kind, directory=where) for name, kind, where in kinds))
    for name in "ab":
        cli("backend", "init", name, "--yes")
    return directories


def test_backend_verbs(cli: Cli) -> None:
    directories = two(cli)
    listed = cli.json("backend", "list")
    assert [list(backend) for backend in listed] == [
        ["name", "kind", "availability_zone", "enabled", "total", "free", "provisioned", "volumes", "capabilities",
         "problems"]
    ] * 2  # fmt: skip
    cli.volume("v", "--size", "2M", "--backend", "b")
    shown = cli.json("backend", "show", "b")
    assert (shown["provisioned"], shown["volumes"], shown["problems"]) == (2 * MiB, 1, [])
    assert shown["options"]["directory"] == str(directories[1])
    assert [backend["name"] for backend in cli.json("backend", "check")] == ["a", "b"]
    cli.refused(4, "not_found", "backend", "show", "nope")
    cli.refused(4, "not_found", "backend", "init", "nope", "--yes")
    before = cli.everything()
    cli("backend", "init", "a", "--yes")  # once more changes nothing
    assert cli.everything() == before


def test_init_asks(cli: Cli) -> None:
    cli.configure(BACKEND.format(name="a", kind="loop", directory=cli.home / "a"))
    cli.refused(2, "usage", "backend", "init", "a")
    assert not (cli.home / "a").exists()


def test_a_directory_that_is_not_mounted(cli: Cli) -> None:
    """An unmounted pool is not taken for an empty one: nothing is made, and nothing is forgotten."""
    pool, _ = two(cli)
    cli.volume("v", "--size", "1M", "--backend", "a")
    away = pool.rename(cli.home / "away")
    for there in (False, True):
        if there:
            pool.mkdir()
        told = cli("create", "w", "--size", "1M", "--backend", "a", "-n", "--json", status=6).json()
        assert any(word in told["backends"][0]["reason"] for word in ("not mounted", "not there"))
        assert cli.json("create", "--size", "1M", "-n")["chosen"] == "b"
        cli.error(8, "backend", "delete", "v", "--yes")
        assert cli.json("show", "v")["status"] in ("available", "error_deleting")
        ran = cli("backend", "check", "--json", status=12)
        assert [bool(backend["problems"]) for backend in ran.json()] == [True, False]
    pool.rmdir()
    away.rename(pool)
    cli("delete", "v", "--yes")
    assert not list(pool.glob("volume-*"))


def test_a_directory_of_another_database(cli: Cli) -> None:
    pool, _ = two(cli)
    cli.volume("v", "--size", "1M", "--backend", "a")
    (pool / ".volctl").write_text(json.dumps({"volctl": 1, "database": "3e55b5c4-0000-4000-8000-000000000000"}))
    told = cli("explain", "--size", "1M", "--backend", "a", "--json", status=6).json()
    assert "another database" in told["backends"][0]["reason"]
    cli.error(8, "backend", "delete", "v", "--yes")
    assert len(list(pool.glob("volume-*"))) == 1


def test_an_empty_directory_of_another_database_is_taken_when_that_is_agreed_to(cli: Cli) -> None:
    pool, _ = two(cli)
    stranger = "3e55b5c4-0000-4000-8000-000000000000"
    (pool / ".volctl").write_text(json.dumps({"volctl": 1, "database": stranger}))
    assert "backend init a" in cli("backend", "check", "--json", status=12).json()[0]["problems"][0]
    cli.refused(2, "usage", "backend", "init", "a")
    told = cli.json("backend", "init", "a", "--yes")["done"]
    assert told[0] == f"took {pool} from database {stranger}, which has nothing in it"
    cli.volume("v", "--size", "1M", "--backend", "a")
    (pool / ".volctl").write_text(json.dumps({"volctl": 1, "database": stranger}))
    cli.refused(5, "conflict", "backend", "init", "a", "--yes")


@pytest.mark.parametrize("marker", ["", "{", "[]", "[" * 4000])
def test_a_directory_with_a_damaged_marker(marker: str, cli: Cli) -> None:
    pool, _ = two(cli)
    (pool / ".volctl").write_text(marker)
    error = cli.error(6, "no_backend", "create", "v", "--size", "1M", "--backend", "a")
    assert "marker is damaged" in error["message"]


@pytest.mark.parametrize("marker", [None, "{"], ids=["lost", "damaged"])
@pytest.mark.parametrize("kind", ["loop", "fake", "qcow2"])
def test_a_marker_is_written_again_beside_objects_that_all_have_rows(kind: str, marker: str | None, cli: Cli) -> None:
    """`cp a/* moved/` leaves out what begins with a dot."""
    old, pool = cli.home / "a", cli.home / "moved"
    cli.configure(BACKEND.format(name="a", kind=kind, directory=old))
    cli("backend", "init", "a", "--yes")
    cli("create", "v", "--from-image", make_image(cli.home / "image", b"content", MiB))
    cli("snapshot", "create", "v", "s")
    cli("create", "w", "--from-snapshot", "s")
    pool.mkdir()
    subprocess.run(f"cp {old}/* {pool}/", shell=True, check=True)
    if marker is not None:
        (pool / ".volctl").write_text(marker)
    cli.configure(BACKEND.format(name="a", kind=kind, directory=pool))
    held = len([file for file in pool.iterdir() if object_named(file.name)])
    assert held == (4 if kind == "qcow2" else 3)
    assert "volctl backend init a" in cli("doctor", status=12).out
    cli.refused(2, "usage", "backend", "init", "a")
    (done,) = cli.json("backend", "init", "a", "--yes")["done"]
    assert done == f"marked {pool} as a pool of this database, which knows the {held} objects in it"
    cli("doctor")
    for volume in ("v", "w"):
        cli("image", "save", volume, cli.home / volume)
        assert (cli.home / volume).read_bytes() == b"content".ljust(MiB, b"\0")


def test_a_marker_is_not_written_beside_what_has_no_row_here(cli: Cli) -> None:
    pool, other = two(cli)
    for name in "ab":
        cli.volume(name, "--size", "1M", "--backend", name)
    marker = pool / ".volctl"
    away = cli.file("b").rename(pool / cli.file("b").name)
    for text in (None, "{", json.dumps({"volctl": 1, "database": str(uuid.uuid4())})):
        marker.unlink(missing_ok=True) if text is None else marker.write_text(text)
        error = cli.refused(5, "conflict", "backend", "init", "a", "--yes")
        assert away.name in error["message"] or "belongs to another database" in error["message"]
        assert (marker.read_text() if marker.exists() else None) == text
    away.rename(other / away.name)
    cli.refused(5, "conflict", "backend", "init", "a", "--yes")  # all have rows, and the marker is another's
    marker.unlink()
    cli("backend", "init", "a", "--yes")
    cli("doctor")


def test_the_builtin_pool_writes_its_marker_again_beside_its_own_objects(cli: Cli) -> None:
    cli.volume("v")
    (cli.pool / ".volctl").unlink()
    cli.volume("w")
    cli("doctor")
    stranger = cli.pool / f"volume-{uuid.uuid4()}"
    stranger.touch()
    (cli.pool / ".volctl").unlink()
    for words in (("create", "--size", "1M"), ("backend", "init", "local", "--yes")):
        assert stranger.name in cli.refused(5, "conflict", *words)["message"]
    stranger.unlink()
    cli.volume("x")


def test_a_directory_with_somebody_elses_files(cli: Cli) -> None:
    pool, _ = two(cli)
    foreign = pool / "volume-3e55b5c4-1111-4000-8000-000000000000"
    for file in (foreign, pool / "notes.txt"):
        file.write_text("mine")
    cli.volume("v", "--size", "1M", "--backend", "a")
    cli("delete", "v", "--yes")
    assert foreign.read_text() == (pool / "notes.txt").read_text() == "mine"
    empty = cli.home / "c"
    empty.mkdir()
    shutil.copy(foreign, empty)
    cli.configure(BACKEND.format(name="c", kind="loop", directory=empty))
    cli.refused(5, "conflict", "backend", "init", "c", "--yes")


def test_owner_and_mode(cli: Cli) -> None:
    pool = cli.home / "a"
    cli.configure(BACKEND.format(name="a", kind="loop", directory=pool) + 'mode = "0640"\n')
    cli("backend", "init", "a", "--yes")
    cli.volume("v")
    assert cli.file("v").stat().st_mode & 0o777 == 0o640


def test_preallocation(cli: Cli) -> None:
    cli.configure(BACKEND.format(name="a", kind="loop", directory=cli.home / "a") + 'preallocate = "falloc"\n')
    cli("backend", "init", "a", "--yes")
    cli.volume("v", "--size", "4M")
    assert cli.file("v").stat().st_blocks * 512 >= 4 * MiB
    cli("extend", "v", "6M")
    assert cli.file("v").stat().st_blocks * 512 >= 6 * MiB


def test_max_attempts(cli: Cli) -> None:
    names = ("a", "b", "c", "d")
    text = "".join(BACKEND.format(name=name, kind="fake", directory=cli.home / name) for name in names)
    cli.configure(text.replace("[[backend]]", 'fail = ["create"]\n[[backend]]').removeprefix('fail = ["create"]\n'))
    for name in names:
        cli("backend", "init", name, "--yes")
    for words, tried in (((), 3), (("--max-attempts", "1"), 1), (("--max-attempts", "2"), 2)):
        error = cli.error(8, "backend", "create", "v", "--size", "1M", *words)
        left = cli.json("show", "v")
        assert (left["status"], left["id"], len(left["attempts"])) == ("error", error["volume"], tried)
        assert [list(attempt) for attempt in left["attempts"]] == [["backend", "error"]] * tried
        assert not list(cli.home.glob("?/volume-*"))
        cli("delete", "v", "--yes")
    assert cli.volume("v", "--size", "1M", "--max-attempts", "4")["backend"] == "d"


def test_a_pool_that_is_nearly_full_is_told_before_it_refuses(cli: Cli) -> None:
    _, pool = two(cli)
    words = ("create", "--size", "1M", "--backend", "b", "--json")
    for percent, status, said in ((79, 0, ""), (80, 0, "its data are 80 % full"), (96, 6, "above full_at 95 %")):
        (pool / "stats").write_text(json.dumps({"data_percent": percent}))
        err = cli(*words, status=status).err
        assert said in err and ("nearly full" in err) == (percent == 80)


def test_a_configuration_that_says_nothing_is_waited_for_until_the_timeout(cli: Cli, volctl: Volctl) -> None:
    (cli.home / "config.toml").unlink(missing_ok=True)
    os.mkfifo(cli.home / "config.toml")
    volctl("list", "--timeout", "1", status=124)
    writer = threading.Thread(target=(cli.home / "config.toml").write_text, args=["max_attempts = 0\n"])
    writer.start()
    assert "max_attempts" in volctl("list", status=2).err
    writer.join()


def test_a_configuration_without_end(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("/dev/full", "/dev/zero", "a" * 5000):
        monkeypatch.setenv("VOLCTL_CONFIG", named)
        cli.error(2, "config", "list")

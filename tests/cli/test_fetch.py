"""Images from URLs: fetched once, asked after each time, gone on with after a kill, dropped when nobody needs them."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MiB, make_image
from tests.conftest import LIMIT, Volctl
from tests.web import Fault, Web, serving, until

CONTENT = random.Random(7).randbytes(2 * MiB)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


def stored(cli: Cli | Volctl) -> list[str]:
    return sorted(os.listdir(cli.state / "images"))


def parts(cli: Cli | Volctl) -> list[str]:
    with closing(sqlite3.connect(cli.state / "volctl.db")) as database:
        return [row[0] for row in database.execute("SELECT id FROM parts")]


def test_fetched_once_and_asked_after_each_time(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    made = cli.json("create", "v", "--from-image", url)
    (image,) = cli.json("image", "list")
    assert (image["origin"], image["name"], image["sha256"]) == (url, None, SHA256[7:])
    assert made["source"] == {"kind": "image", "id": image["id"], "name": url}
    assert made["bootable"] and cli.file("v").read_bytes() == CONTENT
    assert stored(cli) == [image["id"]] and parts(cli) == []
    cli.volume("w", "--from-image", url + "#fragment", "--size", "3M")
    assert cli.file("w").read_bytes() == CONTENT + bytes(MiB)
    assert [asked.status for asked in web.asked] == [200, 304]
    assert [flow["name"] for flow in cli.json("flow", "list")].count("image_fetch") == 1


def test_what_has_changed_is_fetched_anew_and_the_old_one_goes(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    cli.volume("v", "--from-image", url)
    (old,) = stored(cli)
    web.put("/disk.raw", CONTENT[::-1], etag='"two"')
    cli.volume("w", "--from-image", url)
    assert cli.file("w").read_bytes() == CONTENT[::-1]
    assert len(stored(cli)) == 1 and stored(cli) != [old]
    cli("image", "add", "kept", url)
    web.put("/disk.raw", CONTENT, etag='"three"')
    cli.volume("x", "--from-image", url)
    assert cli.file("x").read_bytes() == CONTENT
    assert len(stored(cli)) == 2


def test_without_validators_it_is_fetched_each_time(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT, etag=None)
    for name in ("v", "w"):
        cli.volume(name, "--from-image", url)
    assert web.bodies("/disk.raw") == 2 and len(stored(cli)) == 1


def test_image_add_gives_what_was_fetched_a_name(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    cli.volume("v", "--from-image", url)
    added = cli.json("image", "add", "debian", url, "--min-disk", "4M", "--property", "os=x")
    assert [added["id"]] == stored(cli)
    assert (added["min_disk"], added["properties"], added["origin"]) == (4 * MiB, {"os": "x"}, url)
    cli.refused(5, "exists", "image", "add", "debian", url)
    assert web.bodies("/disk.raw") == 1
    assert cli.json("create", "w", "--from-image", "debian")["size"] == 4 * MiB
    other = cli.json("image", "add", "other", url)
    assert other["id"] != added["id"] and Path(other["location"]).read_bytes() == CONTENT
    cli("image", "delete", "debian", "other")
    assert stored(cli) == []


def test_what_was_fetched_goes_with_the_state_directory(cli: Cli, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    url = web.put("/disk.raw", CONTENT)
    cli("create", "v", "--from-image", url)
    cli("image", "add", "i", url)
    moved = cli.state.rename(cli.home / "moved")
    monkeypatch.setenv("VOLCTL_STATE_DIR", str(moved))
    cli("doctor")
    for number, source in enumerate(("i", url)):
        cli("create", f"w{number}", "--from-image", source)
        assert cli.file(f"w{number}").read_bytes() == CONTENT
    assert cli.json("image", "refresh", "i")["location"] == str(moved / "images" / cli.json("image", "show", "i")["id"])
    assert [asked.status for asked in web.asked] == [200, 304, 304, 304]


def test_what_is_wrong_with_the_request_is_told_before_anything_is_fetched(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    cli.volume("v")
    for status, code, *words in (
        (2, "usage", "bad/name"), (5, "exists", "v"), (4, "not_found", "w", "--type", "nothere"),
        (2, "usage", "w", "--size", "0"), (2, "usage", "w", "--availability-zone", "nowhere"),
        (2, "usage", "w", "--signature", "x"), (4, "not_found", "w", "--keyring", "k", "--signature", "nothere"),
    ):  # fmt: skip
        cli.refused(int(status), str(code), "create", "--from-image", url, *map(str, words))
    assert web.asked == []


@pytest.mark.parametrize(
    "url", ["http://", "http://a b/", "http://[::1", "http://u:p@localhost/", "http://h:99999999/"]
)
def test_no_url(url: str, cli: Cli) -> None:
    error = cli.refused(2, "usage", "create", "v", "--from-image", url)
    assert "u:p" not in error["message"]


def test_a_dry_run_reads_the_first_bytes_only(cli: Cli, web: Web) -> None:
    cli.volume("v")
    qcow2 = make_image(cli.home / "disk.qcow2", CONTENT, 8 * MiB).read_bytes()
    before = cli.everything()
    for path, content, size in (("/raw", bytes(9 * MiB), 9), ("/qcow2", qcow2, 8), ("/gz", gzip.compress(qcow2), 8)):
        url = web.put(path, content, Fault(drip=0.02))
        assert cli.json("create", "w", "-n", "--from-image", url)["size"] == size * MiB
        cli.error(7, "image_too_big", "create", "w", "-n", "--from-image", url, "--size", "1M")
    url = web.put("/raw.gz", gzip.compress(CONTENT))
    assert "--size" in cli.error(2, "usage", "create", "w", "-n", "--from-image", url)["hint"]
    assert cli.everything() == before


def test_if_absent_asks_nobody(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    made = cli.json("create", "v", "--from-image", url, "--if-absent")
    asked = len(web.asked)
    assert cli.json("create", "v", "--from-image", url, "--if-absent")["id"] == made["id"]
    assert len(web.asked) == asked
    cli.error(5, "exists", "create", "v", "--from-image", url + "2", "--if-absent")


def test_packed(cli: Cli, web: Web) -> None:
    """The checksum is of the file as published; what is kept is unpacked."""
    packed = gzip.compress(CONTENT)
    url, sum = web.put("/disk.raw.gz", packed), f"sha256:{hashlib.sha256(packed).hexdigest()}"
    cli.volume("v", "--from-image", url, "--checksum", sum)
    cli.volume("w", "--from-image", url, "--checksum", sum)
    assert cli.file("w").read_bytes() == CONTENT
    (image,) = cli.json("image", "list")
    assert (image["size"], image["sha256"]) == (len(CONTENT), sum[7:])
    assert stored(cli) == [image["id"]] and web.bodies("/disk.raw.gz") == 1
    cli("image", "add", "i", url)
    cli.volume("x", "--from-image", "i", "--checksum", sum)
    cli.error(7, "checksum", "create", "y", "--from-image", "i", "--checksum", SHA256)
    sha512 = f"sha512:{hashlib.sha512(packed).hexdigest()}"
    cli.volume("z", "--from-image", url, "--checksum", sha512)
    assert web.bodies("/disk.raw.gz") == 2


@pytest.mark.parametrize("content", [b"QFI\xfb\0\0\0\3" + bytes(92), gzip.compress(CONTENT)[:-9], b"", b" <HTML>"])
def test_what_the_gate_refuses_leaves_nothing(content: bytes, cli: Cli, web: Web) -> None:
    cli.volume("v")
    url = web.put("/disk", content)
    before = stored(cli)
    error = cli.error(7, "image_corrupt" if len(content) > 10 else "image_format", "create", "w", "--from-image", url)
    assert url in error["message"]
    cli("image", "add", "i", url, status=7)
    assert stored(cli) == before and parts(cli) == [] and not cli.json("image", "list")
    assert cli.json("list")[0]["name"] == "v" and len(cli.json("list")) == 1


def test_a_wrong_checksum_leaves_nothing(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    wrong = f"sha256:{'0' * 64}"
    error = cli.error(7, "checksum", "create", "v", "--from-image", url, "--checksum", wrong)
    assert error["details"]["actual"] == SHA256[7:]
    assert stored(cli) == [] and parts(cli) == []
    cli.volume("v", "--from-image", url, "--checksum", SHA256)
    cli.error(7, "checksum", "create", "w", "--from-image", url, "--checksum", wrong)
    sha512 = f"sha512:{hashlib.sha512(CONTENT).hexdigest()}"
    cli.volume("x", "--from-image", url, "--checksum", sha512)
    assert web.bodies("/disk.raw") == 2


def test_a_killed_fetch_is_gone_on_with(volctl: Volctl, web: Web) -> None:
    """Nothing that was received is fetched again, and what was received before is in the checksum."""
    url = web.put("/disk.raw", CONTENT, Fault(drip=0.05, piece=128 * 1024))
    ran = subprocess.Popen([*volctl.argv, "create", "v", "--from-image", url], env=dict(volctl.environment))
    until(lambda: received(volctl) >= 256 * 1024)
    ran.send_signal(signal.SIGKILL)
    ran.wait()
    volctl("list")
    (part,) = stored(volctl)
    have = (volctl.state / "images" / part).stat().st_size
    assert [f"{id}.part" for id in parts(volctl)] == [part]
    volctl("create", "v", "--from-image", url, "--checksum", SHA256)
    assert web.asked[-1].headers["range"] == f"bytes={have}-" and web.asked[-1].headers["if-range"] == '"one"'
    assert web.asked[-1].sent == len(CONTENT) - have
    assert parts(volctl) == [] and not any(name.endswith(".part") for name in stored(volctl))


def received(volctl: Volctl) -> int:
    """Bytes in the image store."""
    store = volctl.state / "images"
    return sum(path.stat().st_size for path in store.iterdir()) if store.is_dir() else 0


def test_what_was_fetched_before_a_power_cut_is_not_trusted(volctl: Volctl, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT, Fault(cut=MiB), Fault(times=9, status=503, headers={"Retry-After": "0"}))
    (volctl.home / "config.toml").write_text("[images]\nfetch_attempts = 2\n")
    volctl("create", "v", "--from-image", url, status=8)
    assert len(stored(volctl)) == 1
    with closing(sqlite3.connect(volctl.state / "volctl.db")) as database, database:
        database.execute("UPDATE parts SET boot = 'another'")
    web.put("/disk.raw", CONTENT)
    volctl("create", "v", "--from-image", url)
    assert "range" not in web.asked[-1].headers


@pytest.mark.parametrize(("etag", "left"), [('"one"', 1), ('W/"one"', 0), (None, 0)])
def test_interrupted_it_keeps_what_can_be_gone_on_with(etag: str | None, left: int, volctl: Volctl, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT, Fault(drip=0.05), etag=etag)
    ran = subprocess.Popen([*volctl.argv, "create", "v", "--from-image", url], env=dict(volctl.environment))
    until(lambda: received(volctl) > 0)
    ran.send_signal(signal.SIGINT)
    assert ran.wait() == 130
    assert len(parts(volctl)) == len(stored(volctl)) == left
    assert volctl("list", "--json").json() == []


def test_twenty_commands_at_once_fetch_once(volctl: Volctl, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT, Fault(drip=0.005))
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda number: volctl("create", f"v{number}", "--from-image", url), range(20)))
    assert web.bodies("/disk.raw") == 1
    assert len(volctl("list", "--json").json()) == 20 and len(stored(volctl)) == 1


def test_who_waited_for_another_fetch_does_not_ask_again(volctl: Volctl, web: Web) -> None:
    """What was fetched since it began is what the server has."""
    let_go = threading.Event()

    def hold(sent: int) -> None:
        if sent > MiB:
            let_go.wait(LIMIT)

    (volctl.home / "config.toml").write_text(f"[images]\nfetch_timeout = {LIMIT:g}\n")
    url = web.put("/disk.raw", CONTENT, Fault(on_piece=hold))
    first = begin(volctl, "create", "v", "--from-image", url)
    until(lambda: received(volctl) > 0)
    others = [begin(volctl, "create", f"w{number}", "--from-image", url) for number in range(3)]
    until(lambda: all(map(has_begun, others)))
    let_go.set()
    assert [ran.wait() for ran in (first, *others)] == [0] * 4
    assert [asked.status for asked in web.asked] == [200]
    volctl("create", "x", "--from-image", url)
    assert [asked.status for asked in web.asked] == [200, 304]


def begin(volctl: Volctl, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*volctl.argv, *words], env=dict(volctl.environment), stdout=subprocess.DEVNULL)


def has_begun(ran: subprocess.Popen[bytes]) -> bool:
    """Has it opened the database? Only then does it look for the image."""
    assert ran.poll() is None, "it did not wait"
    with suppress(OSError):  # one was closed while we looked
        return any(os.readlink(link).endswith("/volctl.db") for link in Path(f"/proc/{ran.pid}/fd").iterdir())
    return False


def test_who_waits_for_another_fetch_waits_as_long_as_its_timeout(volctl: Volctl, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT, Fault(drip=0.2))
    first = threading.Thread(target=volctl, args=("create", "v", "--from-image", url, "--timeout", f"{LIMIT:g}"))
    first.start()
    until(lambda: received(volctl) > 0)
    volctl("create", "w", "--from-image", url, "--timeout", "1", "--lock-timeout", "0", status=124)
    web.stop.set()  # the server goes away in the middle of it
    first.join()


def test_refresh_asks_the_server_and_fetches_what_has_changed(cli: Cli, web: Web) -> None:
    """The image keeps its id, its name and what was said of it; volumes that were made of it keep their bytes."""
    url = web.put("/disk.raw", CONTENT)
    before = cli.json("image", "add", "i", url, "--min-disk", "4M", "--property", "os=x")
    cli.volume("v", "--from-image", "i")
    assert cli.json("image", "refresh", "i") == before
    assert [asked.status for asked in web.asked] == [200, 304]
    web.put("/disk.raw", CONTENT[::-1] + bytes(MiB), etag='"two"')
    after = cli.json("image", "refresh", "i")
    changed = hashlib.sha256(CONTENT[::-1] + bytes(MiB)).hexdigest()
    assert after == before | {"size": 3 * MiB, "virtual_size": 3 * MiB, "sha256": changed}
    assert stored(cli) == [before["id"]] and parts(cli) == []
    cli.volume("w", "--from-image", "i")
    assert cli.file("w").read_bytes()[: 2 * MiB] == CONTENT[::-1]
    assert cli.file("v").read_bytes()[: 2 * MiB] == CONTENT
    cli("image", "refresh", "i")
    assert [asked.status for asked in web.asked[2:]] == [200, 304]
    assert cli("doctor").status == 0


def test_refresh_of_what_has_no_name_keeps_its_id(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    cli.volume("v", "--from-image", url)
    (image_id,) = stored(cli)
    web.put("/disk.raw", CONTENT[::-1], etag='"two"')
    assert cli.json("image", "refresh", image_id)["id"] == image_id
    assert stored(cli) == [image_id]
    cli.volume("w", "--from-image", url)
    assert cli.file("w").read_bytes() == CONTENT[::-1] and web.bodies("/disk.raw") == 2


def test_refresh_fetches_a_file_that_is_damaged_or_gone(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    image = cli.json("image", "add", "i", url)
    file = Path(image["location"])
    for damage in (lambda: file.write_bytes(b"x"), file.unlink):
        damage()
        assert cli.json("image", "refresh", "i") == image
        assert file.read_bytes() == CONTENT and stored(cli) == [image["id"]]
    assert web.bodies("/disk.raw") == 3
    file.write_bytes(b"x")
    cli("doctor", "--fix", "-y")
    assert cli.json("image", "show", "i")["status"] == "error"
    assert cli.json("image", "refresh", "i") == image


def test_refresh_takes_what_another_command_fetched(cli: Cli, web: Web) -> None:
    """Of what has a name itself it is a copy."""
    url = web.put("/disk.raw", CONTENT)
    first = cli.json("image", "add", "first", url)
    web.put("/disk.raw", CONTENT[::-1], etag='"two"')
    cli.volume("v", "--from-image", url)
    assert len(stored(cli)) == 2
    cli("image", "refresh", "first")
    assert stored(cli) == [first["id"]] and web.bodies("/disk.raw") == 2
    web.put("/disk.raw", CONTENT, etag='"three"')
    second = cli.json("image", "add", "second", url)
    cli("image", "refresh", "first")
    assert web.bodies("/disk.raw") == 3
    assert sorted(stored(cli)) == sorted([first["id"], second["id"]])
    assert all(Path(image["location"]).read_bytes() == CONTENT for image in (first, second))


@pytest.mark.parametrize("code", ["backend", "image_corrupt", "not_found"])
def test_a_refresh_that_fails_leaves_the_image_as_it_was(code: str, cli: Cli, web: Web) -> None:
    cli.configure("[images]\nfetch_attempts = 1\n")
    url = web.put("/disk.raw", CONTENT)
    image = cli.json("image", "add", "i", url)
    faults = {"backend": Fault(9, close_at_once=True), "not_found": Fault(9, status=404)}
    broken = b"QFI\xfb\0\0\0\3" + bytes(92)
    web.put("/disk.raw", broken, *([faults[code]] if code in faults else []), etag='"two"')
    cli.error({"backend": 8, "image_corrupt": 7, "not_found": 4}[code], code, "image", "refresh", "i")
    assert cli.json("image", "show", "i") == image and stored(cli) == [image["id"]] and parts(cli) == []
    cli.volume("v", "--from-image", "i")
    assert cli.file("v").read_bytes() == CONTENT


def test_deleted_pruned_and_kept_within_limits(cli: Cli, web: Web) -> None:
    cli.configure("[image_cache]\nmax_count = 2\n")
    for number in range(4):
        cli.volume(f"v{number}", "--from-image", web.put(f"/{number}", CONTENT))
    assert [image["origin"] for image in cli.json("image", "list")] == [web.url("/2"), web.url("/3")]
    cli.volume("again", "--from-image", web.url("/2"))
    cli.volume("v4", "--from-image", web.put("/4", CONTENT))
    kept = cli.json("image", "list")
    assert [image["origin"] for image in kept] == [web.url("/2"), web.url("/4")]
    cli("image", "add", "named", web.url("/2"))
    cli("image", "delete", kept[1]["id"])
    assert stored(cli) == [kept[0]["id"]]


def test_pruned(cli: Cli, web: Web) -> None:
    """What has a name stays; what was begun and never ended goes with the rest, or after a week."""
    cli.configure("[images]\nfetch_attempts = 1\n")
    for name in ("named", "nameless"):
        cli.volume(name, "--from-image", web.put(f"/{name}", CONTENT))
    named = cli.json("image", "add", "i", web.url("/named"))["id"]
    for path in ("/one", "/two"):
        cli.error(8, "backend", "create", "v", "--from-image", web.put(path, CONTENT, Fault(99, cut=1000)))
    (first, _) = parts(cli)
    cli("image", "cache", "prune")
    assert len(stored(cli)) == 4
    with closing(sqlite3.connect(cli.state / "volctl.db")) as database, database:
        database.execute("UPDATE parts SET created_at = '2020' WHERE id = ?", (first,))
    assert "1 fetched file was deleted" in cli("image", "cache", "prune").err
    assert len(stored(cli)) == 3 and first not in parts(cli)
    cli("image", "cache", "prune", "--all")
    assert stored(cli) == [named] and parts(cli) == []
    assert cli.file("nameless").read_bytes() == CONTENT


def test_a_server_that_is_gone_is_told_with_the_copy_that_is_there(cli: Cli, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    cli.configure("[images]\nfetch_attempts = 1\n")
    cli.volume("v", "--from-image", url)
    (image,) = stored(cli)
    web.files["/disk.raw"].faults = [Fault(times=9, close_at_once=True)]
    error = cli.error(8, "backend", "create", "w", "--from-image", url)
    assert image in error["hint"]
    cli.volume("w", "--from-image", image)


def test_no_larger_than_the_volume_or_the_limit(cli: Cli, web: Web) -> None:
    big = bytes(70 * MiB)
    for fault in (Fault(), Fault(chunked=True)):
        url = web.put("/disk.raw", big, fault)
        cli.error(7, "image_too_big", "create", "v", "--from-image", url, "--size", "4M")
    assert web.sent < 150 * MiB and stored(cli) == []

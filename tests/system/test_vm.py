"""The virtual machine of `scripts/vm`, seen from the host, and the suite that runs in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EVERYTHING, REPO
from tests.sampling import EVERY, SEED

VM = str(REPO / "scripts" / "vm")
POPULATIONS = int(os.environ.get("VOLCTL_POPULATIONS", "2"))
RANDOM_KILLS = int(os.environ.get("VOLCTL_RANDOM_KILLS", "3"))
REPLAYS = int(os.environ.get("VOLCTL_REPLAYS", "10"))
ONLY = os.environ.get("VOLCTL_GUEST", "")
"""Of each boot's tests only those, by pytest's -k."""
LIMIT = 3600 * (12 if EVERY or POPULATIONS > 2 or RANDOM_KILLS > 3 else 1)  # seconds after which a boot is hung
KILLS = ["test_lvm_kill.py", "test_lvm_settle_kill.py", "test_lvm_mend_kill.py", "test_lvm_random_kill.py"]
BOOTS = {
    "pools": ["test_lvm_pool.py", "test_lvm_limits.py", "test_lvm_disks.py", "test_lvm_holders.py"],
    "conformance": ["test_lvm.py"],
    "kills-thin": KILLS,
    "rest": [],
    "mends": ["test_lvm_doctor.py", "test_lvm_adopt.py", "test_lvm_cache.py"],
    "qcow2": ["test_qcow2.py"],
    "kills-thick": KILLS,
    "files": ["test_log_writes.py", "test_file_system_quota.py"],
    "rebuild": ["test_lvm_rebuild.py"],
}
"""tests/root in parts, the longest first: a guest keeps one processor busy, there are two, and both end together."""
THIN = ["test_lvm.py", "test_lvm_image.py"]
"""What `make test` boots for."""
CHOSEN = {
    "thin": "TestThin or image",
    "conformance": "" if EVERY == 1 else "not TestThin and not Raid1",  # a mirror takes seconds to make
    "kills-thin": "thin",
    "kills-thick": "not thin",
}
"""Of a boot's tests, by pytest's -k."""


def vm(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [VM, *map(str, args)]
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode == 125 and "install the package" in done.stderr and not environment:
        pytest.skip(done.stderr.strip())
    return done


def raw(path: Path, mebibytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(mebibytes << 20)
    return path


def suite(boot: str) -> list[str]:
    """The arguments for pytest; `rest` is all that no other boot names."""
    files = THIN if boot == "thin" else BOOTS[boot]
    others = [*THIN, *(name for names in BOOTS.values() for name in names)]
    words = [f"tests/root/{name}" for name in files]
    words = words or ["tests/root", *(f"--ignore=tests/root/{name}" for name in others)]
    chosen = " and ".join(f"({only})" for only in (CHOSEN.get(boot), ONLY) if only)
    return [*words, "-k", chosen] if chosen else words


@pytest.mark.guest
def test_thin_lvm_and_the_main_job(
    debian_image: Path, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, str], None]
) -> None:
    """What every landing and every newcomer waits for; the other boots are in `make test-vm`."""
    run_suite("thin", request.node.nodeid, tmp_path / "out", record_property, "--in", debian_image)


@pytest.mark.vm
@pytest.mark.parametrize("boot", BOOTS)
def test_root_suite(
    boot: str, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, str], None]
) -> None:
    """tests/root on real LVM, many tests a boot."""
    run_suite(boot, request.node.nodeid, tmp_path / "out", record_property)


def run_suite(boot: str, name: str, out: Path, tell: Callable[[str, str], None], *more: str | Path) -> None:
    disks = [word for size in ("1G", "1G", "1G", "512M:4096") for word in ("--disk", size)]
    passed = {"VOLCTL_TEST_ALL": int(EVERYTHING), "VOLCTL_SEED": SEED, "VOLCTL_EVERY": EVERY}
    passed |= {"VOLCTL_POPULATIONS": POPULATIONS, "VOLCTL_REPLAYS": REPLAYS, "VOLCTL_RANDOM_KILLS": RANDOM_KILLS}
    settings = [word for each, value in passed.items() for word in ("--env", f"{each}={value}")]
    settings += ["--env", f"VOLCTL_BOOT={name}"]
    pytest_ = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "--durations=20", *suite(boot)]
    cpus = "2" if boot == "rest" else "1"  # where crowds meet
    done = vm(*disks, *settings, *more, "--cpus", cpus, "--timeout", str(LIMIT), "--out", out, "--", *pytest_)
    print(done.stdout, done.stderr)
    for kind in ("counted", "noted"):
        for line in (out / kind).read_text().splitlines() if (out / kind).exists() else ():
            tell(kind, line)
    tell("tests", str(sum(map(int, re.findall(r"(\d+) (?:passed|failed|error)", done.stdout.rpartition("\n=")[2])))))
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


@pytest.mark.vm
def test_a_command_gives_back_what_it_says_and_leaves(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("from the host\n")
    program = """
        blockdev --getsize64 --getss /dev/vdb /dev/vdc; cat /in/given; id -u; pwd
        seq 1000000; echo told >&2
        mkdir /out/deep; echo left >/out/deep/file; exit 3
    """
    done = vm(
        "--disk", "64M", "--disk", "48M:4096", "--in", given, "--out", tmp_path / "out", "--", "sh", "-c", program
    )
    numbers = [str(number) for number in range(1, 1000001)]
    said = [str(64 << 20), "512", str(48 << 20), "4096", "from the host", "0", str(REPO)]
    assert done.stdout.splitlines() == said + numbers
    assert "told\n" in done.stderr
    assert done.returncode == 3
    assert (tmp_path / "out" / "deep" / "file").read_text() == "left\n"


@pytest.mark.vm
def test_what_was_synced_survives_a_power_cut_and_nothing_else(tmp_path: Path) -> None:
    kept: list[str | Path] = ["--disk", raw(tmp_path / "disk", 64), "--state", tmp_path / "state"]
    program = """
        mkfs.ext4 -q /dev/vdb && mount -o commit=600 /dev/vdb /mnt && mkdir /mnt/d
        for place in /mnt/d /var/lib/volctl; do echo kept >$place/synced; sync $place/synced $place; done
        sync; echo lost >/mnt/d/written; echo 'cut me'; sleep 60
    """
    done = vm(*kept, "--cut-at", "cut me", "--", "sh", "-c", program)
    assert done.returncode == 137
    assert "power cut" in done.stderr

    program = "mount /dev/vdb /mnt && ls /mnt/d; cat /mnt/d/synced /var/lib/volctl/synced; kill -9 $$"
    done = vm(*kept, "--", "sh", "-c", program)
    assert done.stdout == "synced\nkept\nkept\n"
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.vm
def test_output_is_live_and_the_guest_ends_with_the_rig() -> None:
    argv = [VM, "--", "sh", "-c", "echo begun; sleep 600"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        assert children(running.pid) != []
        guest = children(running.pid)
        running.terminate()
        assert running.wait() == 128 + signal.SIGTERM
    assert [pid for pid in guest if alive(pid)] == []


@pytest.mark.vm
def test_the_guest_ends_with_a_killed_rig() -> None:
    argv = [VM, "--", "sh", "-c", "echo begun; sleep 600"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        guest = children(running.pid)
        running.kill()
    end = time.monotonic() + 10
    while any(map(alive, guest)) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pid for pid in guest if alive(pid)] == []


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.vm
def test_a_limit_and_a_cut_by_time() -> None:
    done = vm("--timeout", "0.5", "--", "sleep", "60")
    assert (done.returncode, "did not end in 0.5 s" in done.stderr) == (124, True)
    done = vm("--cut-after", "0.3", "--", "sleep", "60")
    assert (done.returncode, "power cut 0.3" in done.stderr) == (137, True)


@pytest.mark.parametrize(
    ("program", "package"),
    [("qemu-system-x86_64", "qemu-system-x86"), ("mmdebstrap", "mmdebstrap")],
)
def test_a_missing_program_is_one_sentence(tmp_path: Path, program: str, package: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for path in Path("/usr/bin").iterdir():
        if path.name != program:
            (programs / path.name).symlink_to(path)
    done = vm("--", "true", PATH=str(programs), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
    assert f"{program} is missing; install the package {package}" in done.stderr

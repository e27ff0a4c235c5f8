"""What the guest of `scripts/vm` gets: its kernel and root, and directories as small ext4 images, kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

REPO = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volctl"
KEEP = 8  # images of one kind; the last used
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "setpriv": "util-linux", "git": "git"}
STATE_SIZE = 4 << 30
FAILED = 125


def fail(reason: str) -> NoReturn:
    """Ends this process: the machine could not run the command."""
    print(f"vm: {reason}", file=sys.stderr)
    sys.exit(FAILED)


def program(name: str) -> str:
    """The path of a program; ends with the name of its package if it is missing."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        fail(f"the program {name} is missing; install the package {PROGRAMS[name]}")
    return str(found)


def built_guest() -> Path:
    done = subprocess.run([REPO / "scripts" / "vm-image"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(FAILED)
    return Path(done.stdout.strip())


def image_of(kind: str, stamp: str, make: Callable[[Path], None]) -> Path:
    """The image in the cache that was made with the same `stamp`, else a new one."""
    target = CACHE / f"vm-{kind}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.raw"
    with contextlib.suppress(FileNotFoundError):
        os.utime(target)
        return target
    with contextlib.suppress(FileNotFoundError):  # another run was first
        for old in sorted(CACHE.glob(f"vm-{kind}-*"), key=lambda path: path.stat().st_mtime)[: 1 - KEEP]:
            old.unlink()
    part = target.with_suffix(f".part{os.getpid()}")
    make(part)
    part.replace(target)
    return target


def make_ext4(target: Path, directory: Path) -> None:
    paths = [path for path in directory.rglob("*") if not path.is_symlink()]
    data = sum(-(-path.stat().st_size // 4096) * 4096 for path in paths)
    words = ["-O", "^has_journal", "-N", str(len(paths) + 1000), "-d", str(directory)]
    mke2fs(target, int(data * 1.1) + len(paths) * 512 + (32 << 20), words)


def mke2fs(target: Path, size: int, words: list[str]) -> None:
    argv = [program("mke2fs"), "-q", "-F", "-t", "ext4", *words, str(target), f"{size >> 10}k"]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def checkout_image(python: Path) -> Path:
    """What git knows or would add, compiled; no .git."""
    argv = ["git", "-C", str(REPO), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        fail(f"git could not list the files of {REPO}: {listed.stderr.strip()}")
    files = sorted(name for name in listed.stdout.split("\0") if name and (REPO / name).is_file())
    seen = [(name, (REPO / name).stat().st_mtime_ns, (REPO / name).stat().st_size) for name in files]

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="volctl-vm-") as directory:
            copy_compiled(files, Path(directory), python)
            make_ext4(target, Path(directory))

    return image_of("checkout", repr((str(REPO), seen)), make)


def copy_compiled(files: list[str], stage: Path, python: Path) -> None:
    for name in files:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, stage / name)
    stage.chmod(0o755)
    (stage / ".venv").mkdir()
    words = ["-s", str(stage), "-p", str(REPO), str(stage / "volctl"), str(stage / "backends")]
    subprocess.run([python, "-m", "compileall", "-qq", *words], check=False)


def venv_image(venv: Path, packages: Path) -> Path:
    def make(target: Path) -> None:
        subprocess.run([venv / "bin" / "python", "-m", "compileall", "-qq", str(packages)], check=False)
        make_ext4(target, venv)

    seen = sorted((entry.name, entry.stat().st_mtime_ns) for entry in packages.iterdir())
    return image_of("venv", repr((str(venv), seen)), make)


def in_image(paths: list[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".in-", dir=target.parent) as stage:
        for path in paths:
            copy = ["cp", "-a", "--reflink=auto", "--sparse=always", str(path), stage]
            subprocess.run(copy, check=True)
        make_ext4(target, Path(stage))


def state(file: Path) -> Path:
    """An empty file system in `file`, unless there is one."""
    if not file.exists():
        mke2fs(file, STATE_SIZE, ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
    return file

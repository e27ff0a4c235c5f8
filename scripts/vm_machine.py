"""The guest of `scripts/vm`: a QEMU process that runs one command, and what is done to it meanwhile."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vm_images import CACHE, FAILED, program

BOOT_LIMIT = 300.0  # seconds; an emulated guest needs 3 on an idle machine, minutes on a crowded one
PROBE_LIMIT = 4.0
POWEROFF_LIMIT = 20.0
CUT, TIMEOUT = 137, 124
KERNEL = (
    "console=ttyS0 quiet mitigations=off nokaslr no5lvl random.trust_cpu=on no_timer_check "
    "cryptomgr.notests rcupdate.rcu_expedited=1 init_on_alloc=0 apparmor=0 panic=-1"
)
MACHINE = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max,-la57,-avx,-avx2,-erms,-smap,-smep,-umip,-pku"],
}

WORDS = {"kvm": "tsc=reliable", "tcg": "clocksource=hpet norandmaps clearcpuid=112"}
"""The kernel's words for each.

An emulated TSC is measured at boot, on a crowded machine so badly that the guest's time ran five times too fast.
Translated code is found again only at the address at which it ran before: without random addresses, and without what
copies a page byte by byte (`erms`, rep_good: 112) or flushes for nothing, a program starts in half of the time.
"""


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw file as the guest sees it."""

    file: Path
    sector: int = 512
    serial: str = ""
    read_only: bool = False
    throw_away: bool = False
    """Writes go to a temporary file."""


@dataclass(frozen=True, slots=True)
class Moments:
    """When the power is cut (seconds after the command began, a text in stdout), and how often disks are copied,
    as soon as stdout has `copy_from`.

    A copy is what a power cut would have left: the disks `kept`, at an instant at which QEMU stood still.
    """

    cut_after: float | None = None
    cut_at: bytes | None = None
    copy_every: float | None = None
    copy_from: bytes = b""
    copies: Path | None = None
    kept: Mapping[str, Path] = field(default_factory=dict)


def kernel(guest: Path, *more: str) -> list[str]:
    words = ["-kernel", str(guest / "vmlinuz"), "-initrd", str(guest / "initramfs")]
    return [*words, "-append", " ".join([KERNEL, *more])]


def emulator(accel: str) -> list[str]:
    # Should this process be killed, no guest is left behind.
    words = [program("setpriv"), "--pdeathsig", "KILL", program("qemu-system-x86_64")]
    return [*words, *MACHINE[accel], "-M", "pc", "-nodefaults", "-display", "none", "-no-reboot"]


def choose_accel(guest: Path) -> str:
    """`kvm` if a guest comes up with it within seconds: the device may be there and hang. Remembered until reboot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    known = CACHE / f"vm-accel-{boot}"
    with contextlib.suppress(FileNotFoundError):
        return known.read_text(encoding="ascii")
    accel = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and comes_up(guest) else "tcg"
    for old in CACHE.glob("vm-accel-*"):
        old.unlink(missing_ok=True)
    part = known.with_suffix(f".part{os.getpid()}")
    part.write_text(accel, encoding="ascii")
    part.replace(known)
    return accel


def comes_up(guest: Path) -> bool:
    argv = [*emulator("kvm"), "-m", "256", "-serial", "stdio", *kernel(guest, "volctl.probe")]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return False
    return b"volctl-probe: alive" in done.stdout


def drive(number: int, disk: Disk) -> list[str]:
    file = str(disk.file.absolute()).replace(",", ",,")
    mode = "readonly=on" if disk.read_only else f"snapshot={'on' if disk.throw_away else 'off'}"
    # A flush need not reach the host's disk: the host stays up when the guest's power is cut.
    backing = f"if=none,id=disk{number},format=raw,cache=unsafe,discard=unmap,{mode},file={file}"
    sectors = f"logical_block_size={disk.sector},physical_block_size={disk.sector}"
    # Eight in a slot, of which there are 32; their order is that of the guest's names.
    place = f"addr={3 + number // 8:#x}.{number % 8},multifunction=on"
    return ["-drive", backing, "-device", f"virtio-blk-pci,drive=disk{number},serial={disk.serial},{sectors},{place}"]


def port(number: int, path: str) -> list[str]:
    chardev = f"file,id=port{number},path={path.replace(',', ',,')}"
    return ["-chardev", chardev, "-device", f"virtserialport,nr={number},chardev=port{number},name=volctl{number}"]


class Machine:
    """A guest that runs one command; `run` relays its output and gives its exit status."""

    def __init__(self, argv: list[str], console: Path, left: Path, moments: Moments) -> None:
        self.console, self.moments = console, moments
        self.booted: float | None = None
        self.ended: float | None = None
        self.said, self.told = b"", b""
        self.copied = 0
        self.next_copy: float | None = None
        self.pipes = {name: os.pipe() for name in ("out", "err", "told")}
        writers = [writer for _, writer in self.pipes.values()]
        words = [*argv, "-serial", f"file:{console}", "-device", "virtio-serial-pci,max_ports=8,addr=2"]
        for number, path in enumerate([*(f"/dev/fd/{writer}" for writer in writers), str(left)], 1):
            words += port(number, path)
        self.began = time.monotonic()
        self.qemu = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2, pass_fds=writers)
        for writer in writers:
            os.close(writer)

    def run(self, timeout: float) -> int:
        """The command's status; CUT, TIMEOUT or FAILED, said on stderr, if it did not come to that."""
        with selectors.DefaultSelector() as selector:
            for name, (reader, _) in self.pipes.items():
                selector.register(reader, selectors.EVENT_READ, name)
            while selector.get_map():
                status = self._over(time.monotonic(), timeout)
                if status is not None:
                    return status
                self._copy_when_due()
                for key, _ in selector.select(self._pause(timeout)):
                    piece = os.read(key.fd, 65536)
                    if not piece:
                        selector.unregister(key.fd)
                    self._take(key.data, piece)
        return self._status()

    def stop(self) -> None:
        self.qemu.kill()
        self.qemu.wait()

    def _take(self, name: str, piece: bytes) -> None:
        if name == "told":
            self.told += piece
            if self.booted is None and b"booted\n" in self.told:
                self.booted = time.monotonic()
            if len(self.told.split()) == 2:
                self.ended = time.monotonic()
            return
        write_all(1 if name == "out" else 2, piece)
        if name == "out" and (self.moments.copies or self.moments.cut_at):
            self.said += piece

    def _over(self, now: float, timeout: float) -> int | None:
        """The status to end with at once, if any."""
        if self.booted is None:
            late = now > self.began + BOOT_LIMIT
            return self._failed(f"the guest did not come up in {BOOT_LIMIT:g} s") if late else None
        ran, moments = now - self.booted, self.moments
        due = moments.cut_after is not None and ran >= moments.cut_after
        if due or (moments.cut_at is not None and moments.cut_at in self.said):
            self.stop()
            return say(f"power cut {ran:.3f} s after the command began", CUT)
        return say(f"the command did not end in {timeout:g} s", TIMEOUT) if ran > timeout else None

    def _copy_when_due(self) -> None:
        every, copies = self.moments.copy_every, self.moments.copies
        if every is None or copies is None or self.booted is None or self.ended is not None:
            return
        if self.next_copy is None and self.moments.copy_from in self.said:
            self.next_copy = time.monotonic() + every
        if self.next_copy is None or time.monotonic() < self.next_copy:
            return
        target = copies / f"{self.copied:04}"
        target.mkdir(parents=True)
        # Of what was said before, all must be in the copy.
        (target / "said").write_bytes(self.said)
        self.qemu.send_signal(signal.SIGSTOP)
        os.waitpid(self.qemu.pid, os.WUNTRACED)
        for name, file in self.moments.kept.items():
            words = ["cp", "--reflink=auto", "--sparse=always", str(file), str(target / name)]
            subprocess.run(words, check=True)
        self.qemu.send_signal(signal.SIGCONT)
        self.copied += 1
        self.next_copy = time.monotonic() + every  # a slow copy does not keep the guest from its work

    def _pause(self, timeout: float) -> float:
        """Seconds until something is due, whatever the guest says."""
        now = time.monotonic()
        if self.booted is None:
            return max(0.0, self.began + BOOT_LIMIT - now)
        after = self.moments.cut_after
        ends = [self.booted + seconds for seconds in (timeout, after) if seconds is not None]
        ends += [self.next_copy] if self.next_copy is not None and self.ended is None else []
        return max(0.0, min(ends) - now)

    def _status(self) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.qemu.wait(POWEROFF_LIMIT)
        words = self.told.split()
        return int(words[1]) if len(words) == 2 else self._failed("the guest stopped before the command's end")

    def _failed(self, reason: str) -> int:
        tail = self.console.read_text(errors="replace").splitlines()[-20:] if self.console.exists() else []
        return say("\n".join([reason, *tail]), FAILED)


def say(sentence: str, status: int) -> int:
    print(f"vm: {sentence}", file=sys.stderr)
    return status


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

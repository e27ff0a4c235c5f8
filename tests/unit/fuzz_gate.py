"""Mutated images through the gate, in one process: each is accepted or refused, and nothing else happens.

    python -m tests.unit.fuzz_gate [COUNT [SEED]]     # COUNT mutations of each of the bases

The same count and seed give the same images. A mutation changes what a reader trusts: single bits,
whole fields (to extremes, to lengths and offsets of the file itself), pieces of other formats, the
file's end. QEMU is asked about a sample, since a process for each would take hours.
"""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit import image_corpus as corpus
from volctl.errors import VolctlError
from volctl.images import safety
from volctl.images.formats import QEMU_DRIVER, inspect
from volctl.images.formats.magic import identify
from volctl.images.gate import open_image
from volctl.images.reader import Reader

PAGE, SECTOR = 4096, 512
DISK = 2 * corpus.MiB
PATIENCE = 1.5  # seconds of our processor time for one image
SAMPLE = 250  # one of so many goes through the whole gate, QEMU included
BASES = (
    "qcow2-0.10", "qcow2-1.1", "qcow2-zlib", "qcow2-512", "qcow2-extended-l2", "vmdk-sparse", "vmdk-stream",
    "vdi", "vdi-static", "vhd-dynamic", "vhd-fixed", "vhdx", "vhdx-fixed",
)  # fmt: skip


class Found(Exception):
    """A mutation that did what it may not."""


@dataclass(slots=True)
class Base:
    """A good image as its pages that are not zeros, and the sectors of them that are not guest data."""

    name: str
    length: int
    pages: dict[int, bytes]
    hot: list[int]

    @classmethod
    def of(cls, name: str, content: bytes) -> Base:
        pages = {at: content[at : at + PAGE] for at in range(0, len(content), PAGE)}
        pages = {at: page for at, page in pages.items() if page.strip(b"\0")}
        sectors = [at for page in pages for at in range(page, min(page + PAGE, len(content)), SECTOR)]
        return cls(name, len(content), pages, [at for at in sectors if _is_metadata(content[at : at + SECTOR])])


def _is_metadata(sector: bytes) -> bool:
    """The guest's data are hex digits."""
    return bool(sector.strip(b"\0")) and not set(sector) <= set(b"0123456789abcdef")


def bases(where: Path) -> list[Base]:
    disk = corpus.raw(where / "disk.raw", DISK)
    return [Base.of(name, corpus.convert(disk, where / "image", *corpus.ACCEPTED[name]).read_bytes()) for name in BASES]


@dataclass(slots=True)
class Canvas:
    """One open file that is a base again after each mutation."""

    fd: int
    base: Base
    touched: set[int] = field(default_factory=set)
    cut: int | None = None

    def restore(self) -> None:
        if self.cut is not None:
            os.ftruncate(self.fd, self.base.length)
            self.touched |= {at for at in self.base.pages if at + PAGE > (self.cut or 0)}
        for at in self.touched:
            page = self.base.pages.get(at, bytes(PAGE))
            os.pwrite(self.fd, page[: max(0, self.base.length - at)], at)
        os.ftruncate(self.fd, self.base.length)
        self.touched, self.cut = set(), None

    def write(self, at: int, data: bytes) -> None:
        at = max(0, at)
        self.touched |= set(range(at // PAGE * PAGE, at + len(data), PAGE))
        os.pwrite(self.fd, data, at)

    def truncate(self, length: int) -> None:
        self.cut = min(length, self.base.length if self.cut is None else self.cut)
        os.ftruncate(self.fd, length)


Mutation = Callable[[Canvas, random.Random, list[Base]], str]


def _place(canvas: Canvas, numbers: random.Random) -> int:
    """An offset in what a reader trusts, more often near the beginning of a structure than not."""
    sector = numbers.choice(canvas.base.hot)
    return sector + numbers.choice((numbers.randrange(64), numbers.randrange(128), numbers.randrange(SECTOR)))


def flip(canvas: Canvas, numbers: random.Random, others: list[Base]) -> str:
    at, bit = _place(canvas, numbers), numbers.randrange(8)
    byte = os.pread(canvas.fd, 1, at) or b"\0"
    canvas.write(at, bytes((byte[0] ^ 1 << bit,)))
    return f"bit {bit} of {at:#x}"


def extreme(canvas: Canvas, numbers: random.Random, others: list[Base]) -> str:
    code = numbers.choice("BHIIQQ")
    width, length = struct.calcsize(code), canvas.base.length
    top = (1 << 8 * width) - 1
    value = numbers.choice((
        0, 1, 2, 3, top, top - 1, top >> 1, (top >> 1) + 1, 1 << numbers.randrange(8 * width), length, length - 1,
        length + 1, length // SECTOR, length & ~0xFFFF, numbers.choice(canvas.base.hot), numbers.getrandbits(8 * width),
    )) & top  # fmt: skip
    at = _place(canvas, numbers) // width * width
    canvas.write(at, struct.pack(numbers.choice("<>") + code, value))
    return f"{value:#x} as {code} at {at:#x}"


def splice(canvas: Canvas, numbers: random.Random, others: list[Base]) -> str:
    other = numbers.choice(others)
    source, target = numbers.choice(other.hot), numbers.choice(canvas.base.hot)
    size = numbers.choice((16, 64, SECTOR))
    within = source % PAGE
    canvas.write(target, other.pages[source - within][within : within + size])
    return f"{size} bytes of {other.name} {source:#x} to {target:#x}"


def cut(canvas: Canvas, numbers: random.Random, others: list[Base]) -> str:
    length = numbers.choice((
        numbers.randrange(1, canvas.base.length), numbers.randrange(1, 2048), numbers.choice(canvas.base.hot) + 1,
        canvas.base.length - numbers.randrange(1, 4096),
    ))  # fmt: skip
    canvas.truncate(length)
    return f"cut to {length}"


def zero(canvas: Canvas, numbers: random.Random, others: list[Base]) -> str:
    at = numbers.choice(canvas.base.hot)
    canvas.write(at, bytes(SECTOR))
    return f"zeros at {at:#x}"


MUTATIONS: tuple[Mutation, ...] = (flip, flip, extreme, extreme, extreme, splice, cut, zero)


def mutate(canvas: Canvas, numbers: random.Random, others: list[Base]) -> list[str]:
    """A few changes, most often one; what they were."""
    return [numbers.choice(MUTATIONS)(canvas, numbers, others) for _ in range(numbers.choice((1, 1, 1, 2, 3, 8)))]


def look(fd: int) -> str:
    """Our own half of the gate: the format that was accepted, or the code of the refusal."""
    found = os.fstat(fd)
    size, allocated = found.st_size, min(found.st_blocks * 512, found.st_size)
    format = identify(fd, size).format
    if format not in QEMU_DRIVER or format == "raw":
        return format
    try:
        layout = inspect(format, Reader.of(fd, "it", size, allocated))
        safety.inspect_as_openstack(fd, "it", format, size)
    except VolctlError as error:
        if error.exit != 7:
            raise
        return error.code
    if layout.data < 0 or (layout.virtual_size or 0) < 0:
        raise Found(f"a layout of {layout}")
    return format


def look_whole(fd: int) -> str:
    """The whole gate, QEMU included."""
    try:
        with open_image(f"/proc/self/fd/{fd}") as image:
            return image.format
    except VolctlError as error:
        if error.exit != 7:
            raise
        return error.code


def _too_slow(signum: int, frame: object) -> None:
    raise Found(f"no end after {PATIENCE} s of processor time")


def images(base: Base, others: list[Base], count: int, seed: int) -> Iterator[tuple[int, list[str]]]:
    """Descriptors of mutated images, each gone with the next, and what was done to them."""
    numbers = random.Random(f"{base.name} {seed}")
    with tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        canvas = Canvas(file.fileno(), base, set(base.pages))
        for _ in range(count):
            canvas.restore()
            yield canvas.fd, mutate(canvas, numbers, others)


def attack(base: Base, others: list[Base], count: int, seed: int) -> Counter[str]:
    """How often the gate said what. `Found` names the first mutation that broke it."""
    said: Counter[str] = Counter()
    signal.signal(signal.SIGPROF, _too_slow)
    for number, (fd, done) in enumerate(images(base, others, count, seed)):
        try:
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)
            said[look(fd)] += 1
            signal.setitimer(signal.ITIMER_PROF, 0)
            if number % SAMPLE == SAMPLE // 2:
                look_whole(fd)
        except Exception as error:
            raise Found(f"{base.name}, seed {seed}, image {number} ({'; '.join(done)}): {error!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return said


def main(words: list[str]) -> int:
    count, seed = int(words[0]) if words else 5000, int(words[1]) if words[1:] else 1
    began, total = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as scratch:
        others = bases(Path(scratch))
    for base in others:
        said = attack(base, others, count, seed)
        total += sum(said.values())
        print(f"{base.name}: {', '.join(f'{what} {number}' for what, number in said.most_common())}", flush=True)
    print(f"{total} images in {time.monotonic() - began:.0f} s, at most {peak()} MiB")
    return 0


def peak() -> int:
    """The most memory that this process had, in MiB (getrusage(2) counts who started it as well)."""
    found = re.search(r"VmHWM:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Everything that a create refuses: the exit code, the sentence with its numbers, and that nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, GiB, MiB, make_image

CONTENT = b"volctl" * 1000


@pytest.mark.parametrize(
    "size", ["0", "-1", "+1", "1e3", "0x10", "1 G", "1.5", "٣", "１", "nan", "1G\n", "8388608T", "", "1KB", "9" * 40]
)
def test_sizes(size: str, cli: Cli) -> None:
    cli.refused(2, "usage", "create", "v", f"--size={size}")


def test_no_size_and_no_source(cli: Cli) -> None:
    assert "--size" in cli.refused(2, "usage", "create", "v")["hint"]


@pytest.mark.parametrize("pair", ["image snapshot", "image volume", "snapshot volume", "image snapshot volume"])
def test_one_source_at_most(pair: str, cli: Cli) -> None:
    cli.volume("v")
    cli("snapshot", "create", "v", "s")
    image = make_image(cli.home / "i.raw", CONTENT, MiB, "raw")
    values = {"image": str(image), "snapshot": "s", "volume": "v"}
    words = [word for kind in pair.split() for word in (f"--from-{kind}", values[kind])]
    assert "choose one" in cli.refused(2, "usage", "create", "new", *words)["message"]


def test_smaller_than_the_source(cli: Cli) -> None:
    cli.volume("v", "--size", "5M")
    cli("snapshot", "create", "v", "s")
    for source in (("--from-volume", "v"), ("--from-snapshot", "s")):
        error = cli.refused(2, "usage", "create", "new", "--size", "4M", *source)
        assert str(4 * MiB) in error["message"]
        assert str(5 * MiB) in error["message"]
        assert error["details"] == {"size": 4 * MiB, "least": 5 * MiB}


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_smaller_than_the_image(format: str, cli: Cli) -> None:
    image = make_image(cli.home / "i", CONTENT, 5 * MiB, format)
    cli("image", "add", "i", image)
    for name in ("i", str(image)):
        error = cli.refused(7, "image_too_big", "create", "new", "--size", "4M", "--from-image", name)
        assert str(4 * MiB) in error["message"]
        assert str(5 * MiB) in error["message"]
        assert error["details"] == {"virtual_size": 5 * MiB, "size": 4 * MiB}


def test_smaller_than_min_disk(cli: Cli) -> None:
    image = make_image(cli.home / "i.raw", CONTENT, 2 * MiB, "raw")
    cli("image", "add", "i", image, "--min-disk", "8M")
    error = cli.refused(2, "usage", "create", "new", "--size", "4M", "--from-image", "i")
    assert str(4 * MiB) in error["message"]
    assert str(8 * MiB) in error["message"]
    assert cli.volume("v", "--from-image", "i")["size"] == 8 * MiB
    cli.refused(7, "image_too_big", "create", "new", "--size", "1M", "--from-image", "i")


@pytest.mark.parametrize(
    "name", ["", "-x", ".x", "a/b", "a b", "ä", "x" * 64, "x\n", "123e4567-e89b-12d3-a456-426614174000", "a\u202e"]
)
def test_names(name: str, cli: Cli) -> None:
    cli.refused(2, "usage", "create", "--size", "1M", "--", name)


@pytest.mark.parametrize(
    "name", ["-", "..", "a:b", "123e4567e89b12d3a456426614174000", "$(id)", "a\u0301", "\udcff"], ids=ascii
)
def test_names_of_other_things(name: str, cli: Cli) -> None:
    image = make_image(cli.home / "i.raw", CONTENT, MiB, "raw")
    cli.volume("v")
    cli.refused(2, "usage", "snapshot", "create", "v", "--", name)
    cli.refused(2, "usage", "image", "add", "--", name, str(image))
    cli.refused(2, "usage", "type", "create", "--", name)
    cli.refused(2, "usage", "set", "v", "--name", name)
    cli.refused(2, "usage", "list", "--project", name)


@pytest.mark.parametrize("char", ["\n", "\x1b", "\x7f", "\ud800", "\u2028", "\u2029", "\u0378"], ids=ascii)
def test_text(char: str, cli: Cli) -> None:
    cli.volume("v")
    for words in (
        ["create", "new", "--size", "1M", "--description", f"a{char}"],
        ["create", "new", "--size", "1M", "--property", f"k=a{char}"],
        ["create", "new", "--size", "1M", "--property", f"k{char}=a"],
        ["set", "v", "--description", char],
        ["set", "v", "--property", f"k={char}"],
        ["snapshot", "create", "v", "--description", char],
        ["snapshot", "create", "v", "--property", f"k={char}"],
        ["type", "create", "t", "--description", char],
    ):
        error = cli.refused(2, "usage", *words)
        assert f"U+{ord(char):04X}" in error["message"]


def test_lengths(cli: Cli) -> None:
    cli.volume("v", "--size", "1M", "--property", f"{'k' * 255}={'日' * 255}", "--description", "d" * 255)
    cli.volume("w", "--size", "1M", "--property", "k=")
    cli.refused(2, "usage", "create", "x", "--size", "1M", "--property", f"{'k' * 256}=v")
    cli.refused(2, "usage", "create", "x", "--size", "1M", "--property", f"k={'v' * 256}")
    cli.refused(2, "usage", "create", "x", "--size", "1M", "--property", "=v")
    cli.refused(2, "usage", "create", "x", "--size", "1M", "--property", "k")
    cli.refused(2, "usage", "create", "x", "--size", "1M", "--description", "d" * 256)


def test_format_characters_are_kept_and_escaped_for_people(cli: Cli) -> None:
    text = "a\u202eb\u200dc 日本 é"
    made = cli.volume("v", "--size", "1M", "--description", text, "--property", f"k={text}")
    assert made["description"] == made["properties"]["k"] == text
    shown = cli("show", "v").out
    assert "\u202e" not in shown
    assert "a\\u202eb\\u200dc 日本 é" in shown
    assert "\u202e" not in cli("list", "-c", "name", "-c", "description").out
    assert cli("show", "v", "-o", "value", "-c", "description").out == text + "\n"


@pytest.mark.parametrize("option", ["--type", "--from-volume", "--from-snapshot", "--from-image", "--backend"])
def test_not_found(option: str, cli: Cli) -> None:
    assert "nothere" in cli.refused(4, "not_found", "create", "v", "--size", "1M", option, "nothere")["message"]


@pytest.mark.parametrize(
    "words",
    ["--availability-zone mars", "--hint near=v", "--hint same-backend", "--max-attempts 0", "--count 99999999"],
)
def test_usage(words: str, cli: Cli) -> None:
    cli.refused(2, "usage", "create", "v", "--size", "1M", *words.split())


def test_hints_name_volumes(cli: Cli) -> None:
    cli.refused(4, "not_found", "create", "v", "--size", "1M", "--hint", "same-backend=nothere")


@pytest.mark.parametrize("words", ["--checksum sha256:00", "--image-format raw", "--allow-device"])
def test_options_of_an_image_without_one(words: str, cli: Cli) -> None:
    cli.refused(2, "usage", "create", "v", "--size", "1M", *words.split())


IMAGES = {
    "empty": (b"", "image_format"),
    "truncated.qcow2": (b"QFI\xfb\x00\x00\x00\x03" + b"\0" * 92, "image_corrupt"),
    "descriptor.vmdk": (b'# Disk DescriptorFile\nRW 63 FLAT "/etc/hostname" 0\n', "image_unsafe"),
    "packed.gz": (b"\x1f\x8b\x08" + b"\0" * 600, "image_corrupt"),
    "luks": (b"LUKS\xba\xbe\x00\x01" + b"\0" * 600, "image_unsafe"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, cli: Cli) -> None:
    content, code = IMAGES[name]
    (cli.home / name).write_bytes(content)
    for words in (["create", "v", "--from-image", name], ["create", "v", "--size", "1", "--from-image", name]):
        cli.refused(7, code, *words)
    cli.refused(7, code, "image", "add", "i", name)
    cli.refused(7, code, "image", "check", name)


def test_an_image_with_a_backing_file(cli: Cli) -> None:
    import subprocess

    secret = cli.home / "secret.raw"
    secret.write_bytes(b"s" * MiB)
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(cli.home / "i.qcow2")]
    subprocess.run(words, check=True)
    cli.refused(7, "image_unsafe", "create", "v", "--from-image", "i.qcow2")


def test_what_an_image_is_declared_to_be(cli: Cli) -> None:
    import hashlib

    image = make_image(cli.home / "i.qcow2", CONTENT, MiB)
    right = hashlib.sha256(image.read_bytes()).hexdigest()
    source = ("--from-image", str(image))
    cli.refused(7, "image_format", "create", "v", *source, "--image-format", "raw")
    cli.refused(7, "image_format", "create", "v", *source, "--image-format", "vhd")
    cli.refused(2, "usage", "create", "v", *source, "--image-format", "nope")
    cli.refused(7, "checksum", "create", "v", *source, "--checksum", f"sha256:{'0' * 64}")
    cli.refused(7, "checksum", "create", "v", *source, "--checksum", f"sha512:{'0' * 128}")
    for bad in ("sha256", "sha256:", "sha256:00", "md5:" + "0" * 32, f"sha256:{'g' * 64}"):
        cli.refused(2, "usage", "create", "v", *source, "--checksum", bad)
    cli.volume("v", *source, "--image-format", "qcow2", "--checksum", f"sha256:{right.upper()}")


def test_what_is_no_image_file(cli: Cli) -> None:
    import os

    os.mkfifo(cli.home / "fifo")
    for name in ("fifo", "/dev/null", str(cli.home)):
        cli.refused(7, "image_format", "create", "v", "--from-image", name)
    cli.refused(4, "not_found", "create", "v", "--from-image", "nothere.qcow2")
    cli.refused(4, "not_found", "create", "v", "--from-image", "volume:nothere")
    cli.refused(2, "usage", "create", "v", "--from-image", "")
    cli.refused(2, "usage", "create", "v", "--from-image", "https://user:secret@example.org/i.qcow2")
    (cli.home / "loop").symlink_to("loop")
    cli.refused(7, "image_format", "create", "v", "--from-image", "loop")


def test_sources_of_the_wrong_status(cli: Cli) -> None:
    import json

    pool = cli.home / "pool"
    cli.configure(f'[[backend]]\nname = "fake"\nkind = "fake"\ndirectory = "{pool}"\n')
    cli("backend", "init", "fake", "--yes")
    (pool / "fail").write_text(json.dumps({"create": "broken", "snapshot": "broken"}))
    cli("create", "bad", "--size", "1M", status=8)
    cli.refused(5, "conflict", "create", "v", "--from-volume", "bad")
    (pool / "fail").write_text(json.dumps({"snapshot": "broken"}))
    cli.volume("good")
    cli("snapshot", "create", "good", "s", status=8)
    assert cli.json("snapshot", "show", "s")["status"] == "error"
    cli.refused(5, "conflict", "create", "v", "--from-snapshot", "s")
    cli.refused(5, "conflict", "revert", "good", "s", "--yes")
    cli.refused(5, "conflict", "snapshot", "create", "bad")
    cli.refused(5, "conflict", "extend", "bad", "2M")
    cli.refused(5, "conflict", "path", "bad")
    cli.refused(5, "conflict", "image", "add", "i", "volume:bad")


def test_extend(cli: Cli) -> None:
    cli.volume("v", "--size", "2M")
    for size in ("2M", "1M", "1K"):
        assert str(2 * MiB) in cli.refused(2, "usage", "extend", "v", size)["message"]
    for size in ("0", "+0", "++1", "+-1", "1e3", "+1 G", "8388607T1", "", "+", "+8796093022207M"):
        cli.refused(2, "usage", "extend", "v", size)
    cli.refused(4, "not_found", "extend", "nothere", "1")
    cli.refused(6, "no_backend", "extend", "v", "1P")
    assert cli.json("extend", "v", "+1G")["size"] == GiB + 2 * MiB


def test_a_create_that_was_refused_makes_no_directory_of_an_image(cli: Cli, tmp_path: Path) -> None:
    cli.refused(2, "usage", "create", "v")
    assert not list((cli.state / "images").iterdir())


@pytest.mark.parametrize("option", ["--type", "--availability-zone", "--backend", "--from-volume", "--from-snapshot"])
def test_an_empty_value_is_not_none(option: str, cli: Cli) -> None:
    """What a script's unset variable leaves must not mean `any`."""
    ran = cli("create", "v", "--size", "1M", option, "", status=2 if "zone" in option else 4)
    assert ran.out == ""
    assert cli.json("list") == []

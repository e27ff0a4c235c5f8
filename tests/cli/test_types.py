"""Types, availability zones, hints and capabilities: where a volume may go, and why."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.cli.conftest import Cli, GiB, MiB, make_image
from tests.conftest import Volctl

ZONES = """
[[backend]]
name = "a"
kind = "loop"
directory = "{home}/a"
availability_zone = "east"
capabilities = {{ ssd = true, tier = "gold", iops = 500 }}

[[backend]]
name = "b"
kind = "fake"
directory = "{home}/b"
availability_zone = "west"
capabilities = {{ ssd = false, tier = "iron", iops = 50 }}
"""


@pytest.fixture
def two(cli: Cli) -> Cli:
    """A loop backend in the east, a fake one in the west."""
    cli.configure(ZONES.format(home=cli.home))
    for name in ("a", "b"):
        cli("backend", "init", name, "--yes")
    return cli


def refusals(explanation: Any) -> dict[str, str]:
    return {verdict["name"]: verdict["filter"] for verdict in explanation["backends"] if not verdict["passed"]}


def test_verbs(cli: Cli) -> None:
    made = cli.json("type", "create", "gold", "--spec", "tier=gold", "--description", "fast")
    assert list(made) == ["name", "specs", "description", "created_at"]
    assert cli.json("type", "set", "gold", "--spec", "iops=>= 10")["specs"] == {"tier": "gold", "iops": ">= 10"}
    assert cli.json("type", "unset", "gold", "--spec", "tier")["specs"] == {"iops": ">= 10"}
    assert cli.json("type", "list") == [cli.json("type", "show", "gold")]
    cli.refused(4, "not_found", "type", "show", "nope")
    cli.refused(4, "not_found", "type", "delete", "nope")
    cli("type", "delete", "gold")
    assert cli.json("type", "list") == []


@pytest.mark.parametrize("spec", ["ssd=<is>True", "ssd=<or>", "ssd=<in>", "=x", "ssd"])
def test_specs_that_never_match(spec: str, cli: Cli) -> None:
    cli.refused(2, "usage", "type", "create", "t", "--spec", spec)
    cli("type", "create", "t")
    cli.refused(2, "usage", "type", "set", "t", "--spec", spec)


def test_a_type_in_use_stays(cli: Cli) -> None:
    cli("type", "create", "gold")
    cli.volume("v", "--size", "1M", "--type", "gold")
    cli.refused(5, "conflict", "type", "delete", "gold")
    cli("delete", "v", "--yes")
    cli("type", "delete", "gold")


def test_which_type(cli: Cli) -> None:
    """Explicit, else the source's, else the image's, else the default, else none."""
    for name in ("explicit", "sources", "images", "default"):
        cli("type", "create", name)
    image = make_image(cli.home / "i.raw", b"x", MiB, "raw")
    cli("image", "add", "i", image, "--property", "volctl_type=images")
    assert cli.volume("none")["type"] is None
    cli.configure('default_type = "default"\n')
    assert cli.volume("d")["type"] == "default"
    assert cli.volume("i", "--from-image", "i")["type"] == "images"
    assert cli.volume("e", "--from-image", "i", "--type", "explicit")["type"] == "explicit"
    assert cli.volume("s", "--size", "1M", "--type", "sources")["type"] == "sources"
    cli("snapshot", "create", "s", "snap")
    assert cli.volume("s1", "--from-volume", "s")["type"] == "sources"
    assert cli.volume("s2", "--from-snapshot", "snap")["type"] == "sources"
    assert cli.volume("s3", "--from-volume", "s", "--type", "explicit")["type"] == "explicit"
    assert cli.volume("p", "--from-image", image)["type"] == "default"


def test_types_that_are_not_there(cli: Cli) -> None:
    cli.refused(4, "not_found", "create", "v", "--size", "1M", "--type", "nope")
    image = make_image(cli.home / "i.raw", b"x", MiB, "raw")
    cli("image", "add", "i", image, "--property", "volctl_type=nope")
    cli.refused(4, "not_found", "create", "v", "--from-image", "i")
    cli.configure('default_type = "nope"\n')
    assert "nope" in cli.refused(2, "config", "create", "v", "--size", "1M")["message"]


def test_sizes_of_a_type(cli: Cli) -> None:
    bounds = ("--spec", "provisioning:min_vol_size=2", "--spec", "provisioning:max_vol_size=4")
    cli("type", "create", "mid", *bounds)
    for size in ("2047M", "1", "4097M", "5"):
        assert "mid" in cli.refused(2, "usage", "create", "v", "--size", size, "--type", "mid")["message"]
    for size in ("2", "4"):
        cli("create", "--size", size, "--type", "mid")
    made = cli.volume("v", "--size", "3", "--type", "mid")
    assert made["size"] == 3 * GiB
    cli.refused(2, "usage", "extend", "v", "5")
    cli("extend", "v", "4")
    cli.refused(2, "usage", "type", "create", "bad", "--spec", "provisioning:min_vol_size=x")


def test_zones(two: Cli) -> None:
    assert two.volume("e", "--size", "1M", "--availability-zone", "east")["backend"] == "a"
    west = two.volume("w", "--size", "1M", "--availability-zone", "west")
    assert (west["backend"], west["availability_zone"]) == ("b", "west")
    error = two.refused(2, "usage", "create", "v", "--size", "1M", "--availability-zone", "mars")
    assert "east" in error["hint"]
    assert "west" in error["hint"]
    told = two.json("explain", "--size", "1M", "--availability-zone", "west")
    assert refusals(told) == {"a": "AvailabilityZoneFilter"}


def test_a_clone_stays_in_its_zone(two: Cli) -> None:
    two.volume("w", "--size", "1M", "--availability-zone", "west")
    two("snapshot", "create", "w", "s")
    for source in (("--from-volume", "w"), ("--from-snapshot", "s")):
        assert two.json("create", *source)["availability_zone"] == "west"
        assert two.json("create", *source, "--availability-zone", "west")["backend"] == "b"
        two.refused(2, "usage", "create", "v", *source, "--availability-zone", "east")


def test_the_default_zone(two: Cli) -> None:
    two.configure('default_availability_zone = "west"\n' + ZONES.format(home=two.home))
    assert two.volume("v")["backend"] == "b"
    two.configure('default_availability_zone = "mars"\n' + ZONES.format(home=two.home))
    two.refused(2, "usage", "create", "w", "--size", "1M")
    two.configure('default_availability_zone = "here"\n')
    assert two.volume("x")["availability_zone"] == "here"


def test_the_backend_by_name_and_by_hint(two: Cli) -> None:
    two.volume("one", "--size", "1M", "--backend", "a")
    two.volume("two", "--size", "1M", "--backend", "b")
    assert two.volume("s", "--size", "1M", "--hint", "same-backend=two")["backend"] == "b"
    assert two.volume("d", "--size", "1M", "--hint", "different-backend=two")["backend"] == "a"
    words = ("--size", "1M", "--hint", "different-backend=one", "--hint", "different-backend=two")
    told = two("create", "v", *words, "-n", "--json", status=6).json()
    assert refusals(told) == {"a": "DifferentBackendFilter", "b": "DifferentBackendFilter"}
    words = ("--size", "1M", "--hint", "same-backend=one", "--hint", "different-backend=one")
    two.error(6, "no_backend", "create", "v", *words)
    assert "a" in two.refused(4, "not_found", "create", "w", "--size", "1M", "--backend", "nope")["hint"]


def test_capabilities(two: Cli) -> None:
    for number, (spec, backends) in enumerate(
        [
            ("ssd=<is> True", {"a"}),
            ("tier=gold", {"a"}),
            ("tier=s!= gold", {"b"}),
            ("capabilities:iops=>= 100", {"a"}),
            ("iops=<= 50.0", {"b"}),
            ("tier=<or> gold <or> iron", {"a", "b"}),
            ("tier=<in> ro", {"b"}),
            ("vendor:key=anything", {"a", "b"}),
            ("volume_backend_name=b", {"b"}),
            ("nothere=x", set()),
        ]
    ):
        two("type", "create", f"t{number}", "--spec", spec)
        ran = two("explain", "--size", "1M", "--type", f"t{number}", "--json", status=0 if backends else 6)
        told = ran.json()
        assert {verdict["name"] for verdict in told["backends"] if verdict["passed"]} == backends, spec
        assert set(refusals(told).values()) <= {"CapabilitiesFilter"}


def test_a_source_pins_its_backend(two: Cli) -> None:
    two.volume("v", "--size", "1M", "--backend", "b")
    told = two.json("explain", "--from-volume", "v")
    assert refusals(told) == {"a": "SourceBackendFilter"}


def test_a_copy_to_another_backend(cli: Cli) -> None:
    """Only when `--backend` or the type says so; then the bytes are copied."""
    cli.configure(ZONES.format(home=cli.home).replace("west", "east"))
    for name in ("a", "b"):
        cli("backend", "init", name, "--yes")
    cli("type", "create", "there", "--spec", "volume_backend_name=b")
    cli.volume("v", "--size", "2M", "--backend", "a")
    cli.fill("v", b"content" * 1000, 4096)
    cli("snapshot", "create", "v", "s")
    wanted = cli.file("v").read_bytes()
    copies = [
        ("--from-volume", "v", "--backend", "b"),
        ("--from-snapshot", "s", "--backend", "b"),
        ("--from-volume", "v", "--type", "there"),
        ("--from-volume", "v", "--backend", "b", "--size", "3M"),
    ]
    for number, words in enumerate(copies):
        assert cli.volume(f"c{number}", *words)["backend"] == "b"
        content = cli.file(f"c{number}").read_bytes()
        assert content[: 2 * MiB] == wanted
        assert not content[2 * MiB :].strip(b"\0")


def test_weights_are_told(two: Cli) -> None:
    told = two.json("explain", "--size", "1M")
    assert told["chosen"] in ("a", "b")
    for verdict in told["backends"]:
        assert verdict["passed"]
        assert list(verdict["weights"]) == ["CapacityWeigher"]
        assert verdict["total"] == sum(verdict["weights"].values())
    two.configure("[scheduler]\nweighers = { CapacityWeigher = -1.0 }\n" + ZONES.format(home=two.home))
    assert two.json("explain", "--size", "1M")["chosen"] != told["chosen"]


def test_a_disabled_backend(two: Cli) -> None:
    two.volume("v", "--size", "1M", "--backend", "a")
    two.configure(ZONES.format(home=two.home).replace('name = "a"', 'name = "a"\nenabled = false'))
    assert set(refusals(two.json("explain", "--size", "1M"))) == {"a"}
    two.error(6, "no_backend", "create", "w", "--size", "1M", "--backend", "a")
    (listed,) = [backend for backend in two.json("backend", "list") if backend["name"] == "a"]
    assert not listed["enabled"]
    two("delete", "v", "--yes")  # what is there can still be used
    assert not list((two.home / "a").glob("volume-*"))


def test_figures_by_dry_run(cli: Cli) -> None:
    text = '[[backend]]\nname = "p"\nkind = "fake"\ndirectory = "{home}/p"\ncapacity = 10737418240\n'
    for options, largest in [
        ("max_over_subscription_ratio = 1.0\n", 10 * GiB),
        ("max_over_subscription_ratio = 1.0\nreserved_percentage = 10\n", 9 * GiB),
        ("max_over_subscription_ratio = 0.5\n", 5 * GiB),
        ('provisioning = "thick"\nreserved_percentage = 50\n', 5 * GiB),
        ("max_over_subscription_ratio = 2.0\nreserved_percentage = 100\n", 0),
        ("", 200 * GiB),
    ]:
        cli.configure(text.format(home=cli.home) + options)
        cli("backend", "init", "p", "--yes")
        for size, passes in ((largest, True), (largest + MiB, False)):
            if size:
                ran = cli("explain", "--size", f"{size // MiB}M", "--json", status=0 if passes else 6)
                assert refusals(ran.json()) == ({} if passes else {"p": "CapacityFilter"}), options


def test_changes_of_a_type_at_once_are_all_kept(cli: Cli, volctl: Volctl) -> None:
    cli("type", "create", "t")
    words = [sys.executable, "-m", "volctl", "type", "set", "t", "--spec"]
    at_once = [subprocess.Popen([*words, f"k{number}=v"], env=volctl.environment) for number in range(8)]
    assert [process.wait() for process in at_once] == [0] * 8
    assert set(cli.json("type", "show", "t")["specs"]) == {f"k{number}" for number in range(8)}

"""A backend that fails: another one gets the volume, or it is in `error` with every reason."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.crash import MiB, Rig
from tests.flows.test_every_task import told

Json = dict[str, Any]


def attempts(rig: Rig) -> list[tuple[str, str]]:
    return [(attempt["backend"], attempt["error"]) for attempt in rig.there("v")["attempts"]]


def test_the_next_backend_gets_the_volume_and_nothing_is_left_on_the_first(four: Rig) -> None:
    four.order("a", create={"message": "broken", "after": True})
    made = four.run("create", "v", "--size", "3M", "--json", status=0).json()
    assert (made["backend"], made["status"], made["fault"]) == ("b", "available", None)
    assert made["attempts"] == [{"backend": "a", "error": "broken"}]
    assert four.held("a") == set()
    assert four.check() == []
    flows = [(row["name"], row["phase"]) for row in four.flows()]
    tried = [("volume_create_scheduler", "done"), ("volume_create_manager", "undone")]
    assert flows == [("volume_create_api", "done"), *tried, tried[0], ("volume_create_manager", "done")]
    shown = four.run("show", "v", "--json", status=0).json()
    refused = {verdict["name"]: verdict["filter"] for verdict in shown["explanation"]["backends"]}
    assert refused["a"] == "IgnoreAttemptedBackendsFilter"


def test_three_failures_are_the_end_with_all_reasons(four: Rig) -> None:
    for pool in four.pools:
        four.order(pool, create={"message": f"{pool} is broken", "after": True})
    done = four.run("create", "v", "--size", "3M", "--json", status=8)
    assert told(done)["code"] == "backend"
    assert told(done)["volume"] == four.there("v")["id"]
    assert attempts(four) == [("a", "a is broken"), ("b", "b is broken"), ("c", "c is broken")]
    assert four.fault("v")[0] == "backend"
    assert [four.held(pool) for pool in four.pools] == [set()] * 4
    assert four.check() == []


def test_when_no_backend_is_left_the_reasons_are_told(rig: Rig) -> None:
    for pool in rig.pools:
        rig.order(pool, create=f"{pool} is broken")
    done = rig.run("create", "v", "--size", "3M", "--json", status=8)
    for text in (told(done)["message"], rig.fault("v")[1]):
        assert "a is broken" in text and "b is broken" in text
    assert rig.check() == []


def test_one_attempt_is_one_attempt(four: Rig) -> None:
    four.order("a", create="broken")
    four.run("create", "v", "--size", "3M", "--max-attempts", "1", status=8)
    assert attempts(four) == [("a", "broken")]
    assert four.fault("v") == ("backend", "broken")
    assert four.check() == []


def test_the_configuration_limits_attempts(four: Rig) -> None:
    four.configure("max_attempts = 2")
    for pool in four.pools:
        four.order(pool, create="broken")
    four.run("create", "v", "--size", "3M", status=8)
    assert [backend for backend, _ in attempts(four)] == ["a", "b"]


def test_no_space_anywhere_is_exit_6(rig: Rig) -> None:
    for pool in rig.pools:
        rig.order(pool, create={"error": "no_space", "message": f"{pool} is full"})
    done = rig.run("create", "v", "--size", "3M", "--json", status=6)
    assert told(done)["code"] == "no_space" == rig.fault("v")[0]
    assert len(attempts(rig)) == 2
    assert rig.check() == []


@pytest.mark.parametrize("error", ["image_corrupt", "checksum", "not_found", "quota", "conflict"])
def test_what_no_backend_can_help_is_never_tried_elsewhere(four: Rig, error: str) -> None:
    four.order("a", create={"error": error, "message": "so it is"})
    done = four.run("create", "v", "--size", "3M", "--json", status=None)
    assert told(done)["code"] == error and done.status == told(done)["exit"]
    assert attempts(four) == [("a", "so it is")]
    assert four.fault("v") == (error, "so it is")
    assert four.check() == []


def test_an_image_that_changes_while_it_is_copied_is_no_fault_of_the_backend(four: Rig, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"x" * MiB)
    four.order("a", written={"wait": str(tmp_path / "changed")})
    pid = four.start("create", "v", "--from-image", str(image), "--json")
    wait_for(lambda: bool(four.held("a")))
    image.write_bytes(b"y" * MiB)
    (tmp_path / "changed").touch()
    done = four.join(pid)
    assert done.status == 7 and told(done)["code"] == "image_unsafe"
    assert len(attempts(four)) == 1
    assert four.check() == []


def wait_for(what: Any, limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_what_a_user_pinned_is_not_tried_elsewhere(four: Rig) -> None:
    four.order("b", create="broken")
    four.run("create", "v", "--size", "3M", "--backend", "b", status=8)
    assert [backend for backend, _ in attempts(four)] == ["b"]
    assert four.check() == []


def test_a_clone_stays_with_its_source_and_fails_with_it(rig: Rig) -> None:
    rig.order("a", clone="broken")
    rig.run("create", "v", "--from-volume", "src", status=8)
    assert [backend for backend, _ in attempts(rig)] == ["a"]
    assert rig.check() == []


def test_no_backend_at_all_keeps_the_explanation(rig: Rig) -> None:
    done = rig.run("create", "v", "--size", "90000G", "--json", status=6)
    assert told(done)["code"] == "no_backend" == rig.fault("v")[0]
    shown = rig.run("show", "v", "--json").json()
    assert [verdict["filter"] for verdict in shown["explanation"]["backends"]] == ["CapacityFilter"] * 2
    assert rig.check() == []


def test_a_failed_volume_counts_until_it_is_deleted(four: Rig) -> None:
    for pool in four.pools:
        four.order(pool, create="broken")
    four.run("create", "v", "--size", "3M", status=8)
    quota = {line["resource"]: line["in_use"] for line in four.run("quota", "show", "--json").json()}
    assert (quota["volumes"], quota["gigabytes"]) == (1, 3 * MiB)
    four.run("delete", "v", "-y", status=0)
    assert oracle.load(four.state)["volumes"] == []
    assert four.check() == []

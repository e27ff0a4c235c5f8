"""Events and flows: what happened, in order, also to what is gone."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.cli.conftest import Cli, MiB
from tests.conftest import LIMIT, Volctl

API = ["ExtractVolumeRequestTask", "QuotaReserveTask", "EntryCreateTask", "QuotaCommitTask", "VolumeCastTask"]
SCHEDULER = ["ExtractSchedulerSpecTask", "ScheduleCreateVolumeTask"]
MANAGER = [
    "ExtractVolumeRefTask", "OnFailureRescheduleTask", "ExtractVolumeSpecTask", "NotifyVolumeActionTask",
    "CreateVolumeFromSpecTask", "CreateVolumeOnFinishTask",
]  # fmt: skip


def test_the_life_of_a_volume(cli: Cli) -> None:
    made = cli.volume("v")
    cli("snapshot", "create", "v", "s")
    cli("extend", "v", "2M")
    cli("revert", "v", "s", "--yes")
    cli("delete", "v", "--yes", "--cascade")
    events = cli.json("events", made["id"])
    assert all(list(event) == ["id", "time", "type", "object", "request", "payload"] for event in events)
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    statuses = [event["payload"]["to"] for event in events if event["type"] == "volume.status"]
    assert statuses == [
        "creating", "available", "extending", "available", "reverting", "available", "deleting",
    ]  # fmt: skip
    assert [event["type"] for event in events if event["type"] != "volume.status"] == [
        "create.start", "create.end", "extend.start", "extend.end", "revert.start", "revert.end", "delete.start",
        "delete.end",
    ]  # fmt: skip
    requests = {event["request"] for event in events}
    assert len(requests) == 4
    assert {flow["request"] for flow in cli.json("flow", "list")} >= requests
    assert cli.json("events", made["id"][:8]) == events
    assert cli.json("events", "--limit", "2") == cli.json("events")[:2]


def test_a_failed_create(cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{cli.home}/f"\nfail = ["create"]\n')
    cli("backend", "init", "f", "--yes")
    cli("create", "v", "--size", "1M", status=8)
    assert cli.events("v") == ["volume.status", "create.start", "volume.status", "create.error"]
    assert cli.json("events", "v")[-1]["payload"]["code"] == "backend"


def test_what_is_unknown(cli: Cli) -> None:
    cli.refused(4, "not_found", "events", "nothere")
    cli.refused(4, "not_found", "flow", "show", "nothere")
    cli.refused(4, "not_found", "flow", "retry", "nothere")
    cli.refused(4, "not_found", "flow", "abandon", "nothere", "--yes")
    assert cli.json("events") == cli.json("flow", "list") == []


def test_follow(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    words = [sys.executable, "-m", "volctl", "events", "--follow", "-o", "json"]
    program = subprocess.Popen(words, env=volctl.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    seen = [json.loads(program.stdout.readline()) for _ in range(4)]
    assert [event["type"] for event in seen] == cli.events("v")
    cli.volume("w")
    assert json.loads(program.stdout.readline())["object"] == cli.json("show", "w")["id"]
    program.terminate()
    program.communicate(timeout=LIMIT)
    assert program.returncode == 128 + 15


def test_flows_of_a_create(cli: Cli) -> None:
    made = cli.volume("v")
    flows = cli.json("flow", "list")
    assert [flow["name"] for flow in flows] == [
        "volume_create_manager", "volume_create_scheduler", "volume_create_api",
    ]  # fmt: skip
    assert {flow["request"] for flow in flows} == {flows[0]["request"]}
    for flow, tasks in zip(flows, (MANAGER, SCHEDULER, API), strict=True):
        assert list(flow) == ["id", "name", "request", "object", "phase", "cause", "started_at", "ended_at"]
        assert (flow["object"], flow["phase"], flow["cause"]) == (made["id"], "done", None)
        shown = cli.json("flow", "show", flow["id"])
        assert list(shown) == [*flow, "tasks"]
        assert [task["name"] for task in shown["tasks"]] == tasks
        assert all(list(task) == ["name", "state", "started_at", "ended_at"] for task in shown["tasks"])
        assert {task["state"] for task in shown["tasks"]} == {"done"}
    assert cli.json("flow", "show", "v")["id"] == flows[0]["id"]
    assert cli.json("flow", "show", flows[2]["id"][:8])["name"] == "volume_create_api"
    cli.refused(5, "conflict", "flow", "abandon", flows[0]["id"], "--yes")
    cli.refused(2, "usage", "flow", "abandon", flows[0]["id"])


def test_what_was_undone(cli: Cli) -> None:
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{cli.home}/f"\nfail = ["create"]\n')
    cli("backend", "init", "f", "--yes")
    cli("create", "v", "--size", "1M", status=8)
    (manager,) = [flow["id"] for flow in cli.json("flow", "list") if flow["name"] == "volume_create_manager"]
    shown = cli.json("flow", "show", manager)
    assert (shown["phase"], shown["cause"]["code"]) == ("undone", "backend")
    assert [task["name"] for task in shown["tasks"]] == MANAGER[:5]
    assert {task["state"] for task in shown["tasks"]} == {"undone"}


def test_a_stuck_flow_is_shown_retried_and_abandoned(cli: Cli) -> None:
    pool = cli.home / "f"
    cli.configure(f'[[backend]]\nname = "f"\nkind = "fake"\ndirectory = "{pool}"\n')
    cli("backend", "init", "f", "--yes")
    for abandon in (False, True):
        cli.volume("v")
        (pool / "fail").write_text('{"delete": {"message": "broken"}}')
        cli.error(8, "backend", "delete", "v", "--yes")
        (stuck,) = [flow for flow in cli.json("flow", "list") if flow["phase"] == "stuck"]
        assert stuck["cause"]["message"] == "broken"
        cli.error(5, "conflict", "flow", "retry", stuck["id"])
        if abandon:
            assert cli.json("flow", "abandon", stuck["id"], "--yes")["phase"] == "abandoned"
            (pool / "fail").unlink()
            cli("delete", "v", "--yes", "--force")
        else:
            (pool / "fail").unlink()
            assert cli.json("flow", "retry", stuck["id"])["phase"] == "done"
        assert cli.json("list") == []
        assert not list(pool.glob("volume-*"))


def test_limits(cli: Cli) -> None:
    cli("create", "v", "--size", "1M", "--count", "3")
    assert len(cli.json("flow", "list", "--limit", "4")) == 4
    assert len(cli.json("flow", "list")) == len(cli.json("flow", "list", "--all")) == 9
    assert cli.quota()["gigabytes"]["in_use"] == 3 * MiB


def test_a_reader_that_left_ends_it_though_nothing_happens(cli: Cli, volctl: Volctl) -> None:
    cli.volume("v")
    words = [sys.executable, "-m", "volctl", "events", "--follow"]
    process = subprocess.Popen(words, env=volctl.environment, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT) == 0

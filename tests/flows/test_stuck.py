"""What cannot be undone or completed is kept as a stuck flow, tried again, and decided by the user."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests import oracle
from tests.engine.crash import KILLED, MiB, Rig

Json = dict[str, Any]


def due(rig: Rig, year: int = 2000) -> None:
    """The pause of every stuck flow is over, or will be in that year."""
    with sqlite3.connect(rig.state / "volctl.db") as connection:
        connection.execute(f"UPDATE flows SET next_try = '{year}-01-01T00:00:00.000000Z' WHERE next_try IS NOT NULL")
    connection.close()


def when(flow: Json) -> datetime:
    """The flow is tried again."""
    return datetime.strptime(flow["next_try"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def broken_create(rig: Rig) -> Json:
    """A create whose backend fails and then cannot delete either."""
    rig.order("a", create={"message": "broken", "after": True}, delete="stays broken")
    done = rig.run("create", "v", "--size", "3M", status=8)
    assert "stuck" in done.err
    return rig.stuck()


def test_an_undo_that_fails_is_kept_and_the_rest_is_undone(rig: Rig) -> None:
    flow = broken_create(rig)
    assert flow["name"] == "volume_create_manager" and flow["cause"]["code"] == "backend"
    volume = rig.there("v")["id"]
    tables = oracle.load(rig.state)
    lines = {row["task"]: row for row in tables["journal"] if row["flow_id"] == flow["id"]}
    kept = lines["CreateVolumeFromSpecTask"]
    assert (kept["state"], kept["plan"]) == ("failed", {"backend": "a", "object": f"volume-{volume}"})
    assert {row["state"] for task, row in lines.items() if task != kept["task"]} == {"undone"}
    assert rig.fault("v") == ("backend", "broken")
    assert len(rig.flows(name="volume_create_scheduler", object_id=volume)) == 1, (
        "nothing is cast again over storage left behind"
    )
    assert f"volume-{volume}" in rig.held("a")
    assert rig.check("v") == []


def test_the_flow_list_shows_it(rig: Rig) -> None:
    flow = broken_create(rig)
    shown = rig.run("flow", "list", "--json", status=0).json()[0]
    assert (shown["id"], shown["phase"], shown["ended_at"]) == (flow["id"], "stuck", None)
    tasks = rig.run("flow", "show", flow["id"], "--json", status=0).json()["tasks"]
    assert [task["name"] for task in tasks if task["state"] == "failed"] == ["CreateVolumeFromSpecTask"]


def test_a_retry_after_the_cause_is_gone_undoes_it(rig: Rig) -> None:
    flow = broken_create(rig)
    assert rig.run("flow", "retry", flow["id"]).status == 5, "the cause is still there"
    rig.order("a")
    done = rig.run("flow", "retry", flow["id"], "--json", status=0).json()
    assert done["phase"] == "undone"
    assert rig.fault("v") == ("backend", "broken"), "the volume keeps its reason"
    assert rig.check() == []


def test_a_retry_that_settle_was_faster_with_is_success(rig: Rig) -> None:
    flow = broken_create(rig)
    rig.order("a")
    due(rig)
    assert rig.run("flow", "retry", flow["id"], "--json", status=0).json()["phase"] == "undone"
    assert rig.check() == []


def test_settle_tries_again_after_growing_pauses(rig: Rig) -> None:
    flow = broken_create(rig)
    due(rig, 2999)
    rig.run("list", status=0)
    assert rig.stuck()["tries"] == flow["tries"], "not before its time"
    for tries in range(flow["tries"] + 1, flow["tries"] + 5):
        due(rig)
        begun, pause = datetime.now(UTC), timedelta(seconds=2**tries)
        rig.run("list", status=0)
        assert begun + pause <= when(rig.stuck()) <= datetime.now(UTC) + pause
    rig.order("a")
    due(rig)
    rig.run("list", status=0)
    assert rig.check() == []


def test_a_pause_is_never_longer_than_an_hour(rig: Rig) -> None:
    broken_create(rig)
    with sqlite3.connect(rig.state / "volctl.db") as connection:
        connection.execute("UPDATE flows SET tries = 50, next_try = NULL WHERE phase = 'stuck'")
    connection.close()
    begun, hour = datetime.now(UTC), timedelta(hours=1)
    rig.run("list", status=0)
    assert begun + hour <= when(rig.stuck()) <= datetime.now(UTC) + hour


def test_abandon_ends_it_and_touches_nothing(rig: Rig) -> None:
    flow = broken_create(rig)
    assert rig.run("flow", "abandon", flow["id"]).status == 2, "it asks first"
    done = rig.run("flow", "abandon", flow["id"], "-y", "--json", status=0).json()
    assert done["phase"] == "abandoned"
    assert f"volume-{rig.there('v')['id']}" in rig.held("a")
    rig.order("a")
    rig.run("delete", "v", "-y", status=0)
    assert rig.check() == []
    assert rig.run("flow", "abandon", flow["id"], "-y").status == 5


def test_a_stuck_volume_can_be_deleted_and_its_flow_ends(rig: Rig) -> None:
    broken_create(rig)
    rig.order("a")
    rig.run("delete", "v", "-y", status=0)
    due(rig)
    rig.run("list", status=0)
    assert rig.volume("v") is None
    assert rig.check() == []


def test_a_create_that_died_and_cannot_be_undone_is_in_error(rig: Rig) -> None:
    point = ["after CreateVolumeFromSpecTask"]
    rig.run("create", "v", "--size", "3M", signals={point[0]: 9}, status=KILLED)
    rig.order("a", delete="broken")
    told = rig.run("list", status=0)
    assert "stuck" in told.err
    assert rig.fault("v")[0] == "cancelled"
    assert rig.check("v") == []
    rig.order("a")
    due(rig)
    assert rig.check() == []


def test_a_pool_that_is_not_mounted_fails_the_undo(rig: Rig) -> None:
    """Absent is success only where the pool itself was seen."""
    rig.run("create", "v", "--size", "3M", signals={"after CreateVolumeFromSpecTask": 9}, status=KILLED)
    (rig.root / "a").rename(rig.root / "away")
    (rig.root / "a").mkdir()
    rig.run("list", status=0)
    flow = rig.stuck()
    (rig.root / "a").rmdir()
    (rig.root / "away").rename(rig.root / "a")
    rig.run("flow", "retry", flow["id"], status=0)
    assert rig.check() == []


@pytest.mark.parametrize("how", ["settle", "retry"])
def test_a_delete_that_fails_is_completed_later(rig: Rig, how: str) -> None:
    rig.order("a", delete="broken")
    rig.run("delete", "bystander", "-y", status=8)
    assert rig.fault("bystander") == ("backend", "broken")
    assert rig.there("bystander")["status"] == "error_deleting"
    assert rig.check("bystander") == []
    flow = rig.stuck()
    rig.order("a")
    if how == "retry":
        assert rig.run("flow", "retry", flow["id"], "--json", status=0).json()["phase"] == "done"
    due(rig)
    assert rig.check() == []
    assert rig.volume("bystander") is None


def test_a_delete_that_failed_can_be_forced(rig: Rig) -> None:
    rig.order("a", delete="broken")
    rig.run("delete", "bystander", "-y", status=8)
    due(rig, 2999)
    rig.order("a")
    assert rig.run("delete", "bystander", "-y").status == 5
    rig.run("delete", "bystander", "-y", "--force", status=0)
    due(rig)
    assert rig.check() == []
    assert rig.volume("bystander") is None


def test_a_snapshot_whose_deletion_fails_is_completed_later(rig: Rig) -> None:
    rig.order("a", delete_snapshot={"message": "broken", "after": True})
    rig.run("snapshot", "delete", "snap", "-y", status=8)
    row = rig.snapshot("snap")
    assert row and row["status"] == "error_deleting" and row["fault"]["message"] == "broken"
    assert rig.check(row["id"]) == []
    rig.order("a")
    due(rig)
    assert rig.check() == []
    assert rig.snapshot("snap") is None


def test_a_snapshot_that_fails_is_in_error_and_gone_from_the_backend(rig: Rig) -> None:
    rig.order("a", snapshot={"message": "broken", "after": True})
    rig.run("snapshot", "create", "src", "s", status=8)
    row = rig.snapshot("s")
    assert row and row["status"] == "error" and row["fault"] == {"code": "backend", "message": "broken"}
    assert rig.check() == []
    rig.order("a")
    rig.run("snapshot", "delete", "s", "-y", status=0)
    assert rig.check() == []


# -- extend


def test_an_extend_that_touched_nothing_leaves_the_old_size(rig: Rig) -> None:
    rig.order("a", extend={"error": "no_space", "message": "full"})
    rig.run("extend", "src", "5M", status=6)
    row = rig.there("src")
    assert (row["status"], row["size"]) == ("available", 2 * MiB)
    assert rig.check() == []


def test_an_extend_that_is_half_done_is_in_error_and_then_completed(rig: Rig) -> None:
    rig.order("a", extend={"message": "broken", "after": True})
    rig.run("extend", "src", "5M", status=8)
    assert rig.fault("src") == ("backend", "broken")
    assert rig.check("src") == []
    rig.order("a")
    due(rig)
    assert rig.check() == []
    row = rig.there("src")
    assert (row["status"], row["size"], row["fault"]) == ("available", 5 * MiB, None)


def test_an_extend_that_got_stuck_and_then_turns_out_untouched(rig: Rig) -> None:
    """First nobody can tell the size; at the next try it is the old one, and there is no room: undone."""
    rig.order("a", extend="broken", inspect={"skip": 1, "message": "broken too"})
    rig.run("extend", "src", "5M", status=8)
    assert rig.fault("src") == ("backend", "broken"), "not why nobody could look"
    rig.order("a", extend={"error": "no_space", "message": "full"})
    due(rig)
    assert rig.check() == []
    row = rig.there("src")
    assert (row["status"], row["size"], row["fault"]) == ("available", 2 * MiB, None)


@pytest.mark.parametrize("untouched", [False, True])
def test_an_extend_that_is_stuck_is_not_forgotten_when_the_volume_is_detached(rig: Rig, untouched: bool) -> None:
    rig.run("attach", "src", status=0)
    rig.order("a", extend="broken", inspect={"skip": 1, "message": "broken too"})
    rig.run("extend", "src", "5M", status=8)
    rig.order("a")
    rig.run("detach", "src", status=0)
    assert rig.there("src")["status"] == "error"
    if untouched:
        rig.order("a", extend={"error": "no_space", "message": "full"})
    due(rig)
    assert rig.check() == []
    row = rig.there("src")
    assert (row["status"], row["size"], row["fault"]) == ("available", (2 if untouched else 5) * MiB, None)


# -- revert


def test_a_revert_that_fails_is_in_error_and_then_completed(rig: Rig) -> None:
    rig.order("a", revert="broken")
    rig.run("revert", "src", "snap", "-y", status=8)
    assert rig.fault("src") == ("backend", "broken")
    assert rig.check("src") == []
    rig.order("a")
    due(rig)
    assert rig.check(src=rig.contents["then"]) == []
    assert rig.there("src")["status"] == "available"


def test_a_revert_that_wrote_nothing_is_undone_unless_one_before_it_died(rig: Rig) -> None:
    rig.order("a", revert={"message": "the snapshot is lost", "untouched": True})
    rig.run("revert", "src", "snap", "-y", status=8)
    assert rig.check() == [] and rig.there("src")["status"] == "available"
    rig.run("revert", "src", "snap", "-y", signals={"before RevertStorageTask": 9}, status=KILLED)
    assert rig.check("src") == []
    assert rig.fault("src") == ("backend", "the snapshot is lost")


def test_a_snapshot_that_a_revert_has_yet_to_read_is_kept(rig: Rig) -> None:
    rig.order("a", revert="broken")
    rig.run("revert", "src", "snap", "-y", status=8)
    for words in ("snapshot delete snap -y", "delete src --cascade -y"):
        assert f"flow retry {rig.stuck()['id']}" in rig.run(*words.split(), status=5).err
    rig.run("delete", "src", "--cascade", "--force", "-y", status=0)
    rig.order("a")
    due(rig)
    assert rig.check() == []


# -- adopt


@pytest.mark.parametrize("way", ["undo fails", "another version"])
def test_what_was_adopted_halfway_is_never_an_orphan(rig: Rig, way: str) -> None:
    """It is somebody's: without a row, or with that of a failed create, doctor would delete it."""
    thing = rig.pools["a"] / "thing.raw"
    thing.write_bytes(content := bytes(range(256)) * 4096)
    if way == "undo fails":
        change = {"flow": "volume_adopt", "task": "TakeTask", "half": "revert", "error": "permission"}
        rig.order("a", describe="broken")
        rig.run("adopt", "a", "thing.raw", "v", inject=[change], status=8)
        rig.order("a")
        assert rig.fault("v") == ("backend", "broken")
    else:
        change = {"flow": "volume_adopt", "task": "FinishAdoptTask", "insert": "TaskOfAnotherVersionTask"}
        rig.run("adopt", "a", "thing.raw", "v", inject=[change], signals={"after TakeTask": 9}, status=KILLED)
    (flow,) = [row for row in rig.flows() if row["ended_at"] is None]
    rig.run("flow", "abandon", flow["id"], "-y", status=0)
    assert rig.there("v")["status"] == "error" and not thing.exists()
    rig.run("doctor", "--fix", "-y", status=0)
    assert rig.file("v").read_bytes() == content
    rig.run("release", "v", status=0)
    assert (rig.pools["a"] / "v").read_bytes() == content
    rig.mark_foreign()
    assert rig.check() == []


def test_an_adopt_that_was_stuck_gives_the_file_back(rig: Rig) -> None:
    thing = rig.pools["a"] / "thing.raw"
    thing.write_bytes(content := bytes(range(256)) * 4096)
    change = {"flow": "volume_adopt", "task": "TakeTask", "half": "revert", "error": "permission"}
    rig.order("a", describe="broken")
    rig.run("adopt", "a", "thing.raw", "v", inject=[change], status=8)
    rig.order("a")
    due(rig)
    rig.run("list", status=0)
    assert thing.read_bytes() == content
    rig.run("delete", "v", "-y", status=0)
    rig.mark_foreign()
    assert thing.read_bytes() == content and rig.check() == []


# -- another version's flows


OTHER = [{"flow": "volume_create_manager", "task": "NotifyVolumeActionTask", "insert": "TaskOfAnotherVersionTask"}]


def test_a_flow_of_another_version_is_left_alone_and_can_be_abandoned(rig: Rig) -> None:
    dies = {"after CreateVolumeFromSpecTask": 9}
    rig.run("create", "v", "--size", "3M", inject=OTHER, signals=dies, status=KILLED)
    told = rig.run("list", status=0)
    (flow,) = [row for row in rig.flows() if row["ended_at"] is None]
    assert "another version" in told.err and f"flow abandon {flow['id']}" in told.err
    assert f"volume-{rig.there('v')['id']}" in rig.held("a"), "nothing is guessed at"
    assert rig.there("v")["status"] == "creating"
    assert rig.run("flow", "retry", flow["id"]).status == 5
    rig.run("flow", "abandon", flow["id"], "-y", status=0)
    assert rig.there("v")["status"] == "error"
    rig.run("delete", "v", "-y", status=0)
    assert rig.check() == []


@pytest.mark.parametrize(
    ("flow", "task", "argv"),
    [
        ("volume_extend", "ExtendEntryTask", "extend src 5M"),
        ("volume_delete", "DeleteEntryTask", "delete src --cascade -y"),
        ("snapshot_create", "FinishSnapshotTask", "snapshot create src s"),
        ("image_add", "ImageEntryTask", "image add i IMAGE --copy"),
    ],
)
def test_an_abandoned_flow_of_another_version_leaves_nothing_that_cannot_be_deleted(
    rig: Rig, flow: str, task: str, argv: str
) -> None:
    change = [{"flow": flow, "task": task, "insert": "TaskOfAnotherVersionTask"}]
    words = argv.replace("IMAGE", str(rig.contents["image"].source)).split()
    storage = {
        "volume_extend": "ExtendStorageTask",
        "volume_delete": "DeleteStorageTask",
        "snapshot_create": "SnapshotStorageTask",
        "image_add": "CopyImageTask",
    }
    rig.run(*words, inject=change, signals={f"before {storage[flow]}": 9}, status=KILLED)
    (left,) = [row for row in rig.flows() if row["ended_at"] is None]
    rig.run("flow", "abandon", left["id"], "-y", status=0)
    rig.run("delete", "src", "-y", "--cascade", "--force", status=0)
    assert rig.check() == []


# -- mistakes of ours


def test_an_undo_of_rows_that_always_fails_does_not_stop_other_commands(rig: Rig) -> None:
    change = [
        {"flow": "volume_create_manager", "task": "NotifyVolumeActionTask", "half": "unrecord", "error": "RuntimeError"}
    ]
    dies = {"after CreateVolumeFromSpecTask": 9}
    rig.run("create", "v", "--size", "3M", signals=dies, status=KILLED)
    rig.run("create", "w", "--size", "3M", inject=change, status=0)
    rig.run("list", inject=change, status=0)
    due(rig)
    assert rig.check() == []


def test_state_that_cannot_be_read_does_not_stop_other_commands(rig: Rig) -> None:
    dies = {"after CreateVolumeFromSpecTask": 9}
    rig.run("create", "v", "--size", "3M", signals=dies, status=KILLED)
    with sqlite3.connect(rig.state / "volctl.db") as connection:
        connection.execute('UPDATE flows SET state = \'{"of": "another world"}\' WHERE ended_at IS NULL')
    connection.close()
    rig.run("list", status=0)
    (left,) = [row for row in rig.flows() if row["ended_at"] is None]
    rig.run("flow", "abandon", left["id"], "-y", status=0)
    rig.run("delete", "v", "-y", status=0)
    assert rig.check() == []

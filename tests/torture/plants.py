"""Mistakes that a tired engineer could make, one or more in each room, and the tests that must catch them.

Data for `tests.torture.planted`. `old` is there once in `file`, and becomes `new`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plant:
    """`words` are pytest's, of tests in `make test`; of tests in a guest where `guest` says so."""

    room: str
    what: str
    file: str
    old: str
    new: str
    words: tuple[str, ...]
    guest: bool = False


PLANTS = (
    Plant(
        "flows",
        "an undo that forgets the file",
        "volctl/flows/manager.py",
        "        run.env.backends.get(run.state.backend).delete(run.state.object)\n",
        "        return\n",
        ("tests/engine/test_kill_matrix.py",),
    ),
    Plant(
        "engine",
        "a journal that is committed apart from the rows",
        "volctl/engine/run.py",
        "                self._record(tx, run, pending)\n                run.save(tx, journal.DONE)\n",
        "                self._record(tx, run, pending)\n            with self.store.write() as tx:\n"
        "                run.save(tx, journal.DONE)\n",
        ("tests/engine/test_kill_matrix.py",),
    ),
    Plant(
        "locks",
        "a lock that no child inherits",
        "volctl/command.py",
        "{*pass_fds, *held.locks, *fds}, on_output, prepare, keep_locks",
        "{*pass_fds, *fds}, on_output, prepare, keep_locks",
        ("tests/flows/test_interrupt.py", "-k", "life or settle"),
    ),
    Plant(
        "locks",
        "a lock that is held only to tidy up is taken for a command's",
        "volctl/engine/locks.py",
        "                with _tidying(self._directory):\n"
        "                    if (descriptor := self._lock(name, mode)) is not None:\n                        break\n",
        "",
        ("tests/engine/test_locks.py",),
    ),
    Plant(
        "settle",
        "what died is tried again on another backend",
        "volctl/engine/run.py",
        "                run.cause = replace(run.cause, retryable=False)\n",
        "                run.cause = replace(run.cause, retryable=True)\n",
        ("tests/engine/test_kill_matrix.py",),
    ),
    Plant(
        "quota",
        "a limit that cannot be used up",
        "volctl/quota.py",
        "            if now + more > limit * ",
        "            if now + more >= limit * ",
        ("tests/cli/test_quota.py",),
    ),
    Plant(
        "scheduler",
        "a thin pool whose other volumes do not count",
        "volctl/scheduler/filters.py",
        "    if limit is None or used + size <= limit:\n",
        "    if limit is None or size <= limit:\n",
        ("tests/unit/test_scheduler_capacity.py",),
    ),
    Plant(
        "gate",
        "a checksum that is not looked at when the image is known",
        "volctl/images/gate.py",
        "    return digest and wanted in (None, found.format)\n",
        "    return wanted in (None, found.format)\n",
        ("tests/flows/test_image_cache.py",),
    ),
    Plant(
        "formats",
        "a file that may lack its last cluster",
        "volctl/images/formats/qcow2.py",
        '        reader.reaches(max(plain) + header.cluster, "last cluster")\n',
        '        reader.reaches(max(plain), "last cluster")\n',
        ("tests/unit/test_gate.py",),
    ),
    Plant(
        "cache",
        "the cache grows beyond its limits where the disk has room",
        "volctl/flows/cache.py",
        "        if not full and pools.has_room(",
        "        if not full or pools.has_room(",
        ("tests/flows/test_image_cache.py", "-k", "recently or larger or limit"),
    ),
    Plant(
        "fetch",
        "the rest of another file is taken, if that is just as long",
        "volctl/images/fetch.py",
        "        if self.total not in (None, total) or not self.mark.is_of(head.headers):\n",
        "        if self.total not in (None, total):\n",
        ("tests/cli/test_fetch_answers.py",),
    ),
    Plant(
        "convert",
        "zeros are skipped on a target that has something on it",
        "volctl/images/convert.py",
        '    zero = ("--target-is-zero",) if target.zeroed else ()\n',
        '    zero = ("--target-is-zero",)\n',
        ("tests/unit/test_convert.py",),
    ),
    Plant(
        "loop",
        "a delete that leaves what a killed revert had begun",
        "backends/loop.py",
        "            place.remove(volume.name, _reverting(volume))\n",
        "            place.remove(volume.name)\n",
        ("tests/backends/test_loop.py",),
    ),
    Plant(
        "qcow2",
        "a layer that is a snapshot's goes when little lies over it",
        "volctl/qcow2/layers.py",
        "        if is_layer(name) and not self._is_snapshot(name):\n",
        "        if is_layer(name):\n",
        ("tests/backends/test_qcow2.py",),
    ),
    Plant(
        "lvm",
        "an extend that was done already is done once more",
        "backends/lvm.py",
        "                if size > lv.size:\n",
        "                if size >= lv.size:\n",
        ("tests/root/test_lvm.py", "-k", "TestThin and extend"),
        guest=True,
    ),
    Plant(
        "attach",
        "an attach that does not ask who else has the volume",
        "volctl/flows/attach.py",
        "        check_holders(env, volume)\n        state.backend = volume.backend\n",
        "        state.backend = volume.backend\n",
        ("tests/flows/test_attach.py",),
    ),
    Plant(
        "doctor",
        "a volume whose file was cut is as good as any",
        "volctl/service/doctor/objects.py",
        "        return self.size != volume.size\n",
        "        return self.size is None\n",
        ("tests/cli/test_doctor.py",),
    ),
    Plant(
        "rebuild",
        "volumes that share files forget that they do",
        "volctl/service/doctor/rebuild.py",
        '        "tree": about.get("tree"),\n',
        '        "tree": None,\n',
        ("tests/cli/test_rebuild.py", "-k", "tree or layer"),
    ),
    Plant(
        "adopt",
        "the file of a registered image is adopted",
        "volctl/flows/adopt.py",
        "        with env.store.read() as tx:\n            _refuse_image(tx, found.path)\n",
        "",
        ("tests/cli/test_adopt.py", "-k", "image"),
    ),
    Plant(
        "CLI codes",
        "some of several failed, and the command ends with 0",
        "volctl/cli/output.py",
        "        if failed:\n            message",
        "        if failed and not done:\n            message",
        ("tests/cli/test_output.py", "tests/cli/test_delete.py"),
    ),
    Plant(
        "JSON",
        "infinity in a list is no JSON",
        "volctl/cli/output.py",
        "        return [_finite(item) for item in value]\n",
        "        return value\n",
        ("tests/cli/test_output.py",),
    ),
    Plant(
        "signals",
        "a command that a signal ends has no time for its undo",
        "volctl/interrupt.py",
        "        _heard, _deadline = True, time.monotonic() + GRACE\n",
        "        _heard = True\n",
        ("tests/flows/test_interrupt.py",),
    ),
    Plant(
        "config",
        "a key of [scheduler] that nobody knows is passed over",
        "volctl/config.py",
        '        scheduler.only(["filters", "weighers"])\n',
        "",
        ("tests/cli/test_config.py",),
    ),
)

"""The list of flows, which imports them only when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

from volctl import flows
from volctl.engine.task import Flow


def test_every_flow_is_listed_under_its_own_name() -> None:
    written = [
        value.name
        for module in iter_modules(flows.__path__)
        for value in vars(import_module(f"volctl.flows.{module.name}")).values()
        if isinstance(value, Flow)
    ]
    assert sorted(written) == sorted(flows.FLOWS)
    assert {name: flow.name for name, flow in flows.FLOWS.items()} == {name: name for name in flows.FLOWS}


def test_a_flow_that_is_not_asked_for_is_not_imported() -> None:
    program = "import sys, volctl.service.volumes; print([name for name in sys.modules if name in sys.argv])"
    unused = ["volctl.flows.manager", "volctl.flows.adopt", "volctl.images.fetch", "volctl.images.packed"]
    done = subprocess.run([sys.executable, "-c", program, *unused], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"

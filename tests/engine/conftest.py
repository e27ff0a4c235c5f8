"""The worlds that the crash tests share."""

from __future__ import annotations

from tests.engine.crash import empty_world, four, loop_world, rig, world, zygote

__all__ = ["empty_world", "four", "loop_world", "rig", "world", "zygote"]

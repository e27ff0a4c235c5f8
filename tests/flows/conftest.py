"""The worlds that the crash tests share."""

from __future__ import annotations

from tests.engine.crash import caching, caching_world, empty_world, four, qcow2_world, rig, world, zygote

__all__ = ["caching", "caching_world", "empty_world", "four", "qcow2_world", "rig", "world", "zygote"]

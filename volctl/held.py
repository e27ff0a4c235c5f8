"""The lock files that this process has open."""

from __future__ import annotations

locks: set[int] = set()
"""Their descriptors. Every child keeps them open, and whoever shares one works for us."""

"""The conformance suite's assertions explained."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.backends.conformance", "tests.backends.attaching")

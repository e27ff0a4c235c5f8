"""What the unit tests share."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")  # a busy machine makes no test wrong

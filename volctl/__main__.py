"""`python -m volctl`."""

from __future__ import annotations

import sys

from volctl.cli import main

sys.exit(main())

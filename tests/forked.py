"""What a test does in a child of its own process, where it can be killed."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

PATIENCE = 600  # seconds after which a child is hung


def forked(act: Callable[[], object]) -> int:
    """How a child that does it ends: 0, 1 when it raised (told on standard error), a signal as its negative number.

    The child never returns into pytest: it would run the tests that follow as a second worker, unseen.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(PATIENCE)
            act()
            status = 0
        except BaseException:  # told here; the parent hears the status
            sys.setprofile(None)
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def was_killed(status: int) -> bool:
    """False if it came to its end; fails the test if it ended otherwise."""
    assert status in (0, -signal.SIGKILL), f"the child ended with {status}"
    return status != 0

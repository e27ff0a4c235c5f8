"""One function per command; knows nothing of terminals: the Python API.

    with open_session(Options(), Watcher()) as session:
        volume = creation.create(session, CreateRequest(name="data", size="10"))

Every function takes the session first and raises nothing but `VolctlError`. What is made of texts by
a user (references, sizes, names) is checked here and below, so that any front end may pass them on.
"""

from __future__ import annotations

from volctl.service.session import Options, Session, Watcher, open_session

__all__ = ["Options", "Session", "Watcher", "open_session"]

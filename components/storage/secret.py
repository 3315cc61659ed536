"""Values that a user keeps in a Secret: of its mounted files, else of the environment.

In a cluster the whole Secret is mounted, with a file for each variable. The files are read anew each time, so that a
Secret may come late and may change.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

VARIABLE = "RECAPTION_SECRET_FOLDER"
FOLDER = "/etc/recaption/secret"
"""Where a Secret is mounted, unless VARIABLE names another place."""


def secret(name: str) -> str | None:
    """Return the value of this name in the mounted Secret, else in the environment; None if neither has one."""
    with suppress(FileNotFoundError):
        if found := Path(os.environ.get(VARIABLE) or FOLDER, name).read_text().strip():
            return found
    return os.environ.get(name) or None

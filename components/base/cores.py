"""How many cores this process may use: os.cpu_count() would be its node's, whatever its container asked for."""

from __future__ import annotations

import os

from components.base.errors import PermanentError

CORES = "RECAPTION_CORES"  # environment variable; in our Jobs the container's CPU request, rounded up


def cores() -> int:
    """Return the number of cores this process may use: RECAPTION_CORES, or, where that is unset or 0, what the
    scheduler grants.

    Raises:
        PermanentError: the variable is no whole number.
    """
    text = os.environ.get(CORES, "0")
    if not text.isdecimal():
        raise PermanentError(f"{CORES}: got {text!r}, expected a whole number of cores; correct or unset it")
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has none
    return int(text) or granted or 1

"""The version of recaption, as records and images carry it."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed


def version() -> str:
    """Return the version of recaption as installed; `source` when it runs from a tree that was never installed."""
    try:
        return _installed("recaption")
    except PackageNotFoundError:
        return "source"

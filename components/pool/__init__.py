"""What everything stands on, without torch: recipe, storage, shards, columns, the worker loop, the ledger."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed


def version() -> str:
    """Version of recaption as installed; `source` when it runs from a tree that was never installed."""
    try:
        return _installed("recaption")
    except PackageNotFoundError:
        return "source"

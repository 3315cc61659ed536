"""Turns whatever a model library raises while it loads into one line, and either bad input or bad luck."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub import errors as hub

from components.base.errors import PermanentError, RecaptionError, TemporaryError, chain_of

# What the hub answered for sure, or what the user asked for. A missing *local* entry only means that the hub was not
# reached; it is a kind of EntryNotFoundError, so it is looked at first.
_SURE = (
    hub.RepositoryNotFoundError,  # and GatedRepoError: the access token is missing
    hub.RevisionNotFoundError,
    hub.EntryNotFoundError,
    hub.HFValidationError,
    hub.OfflineModeIsEnabled,
)
MAX_MESSAGE = 300  # characters; a state dict that doesn't match lists every key


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever is raised while `what` is loaded into one clear line, either bad input or bad luck.

    Raises:
        PermanentError: there is no such model, its files are broken or not what they should be, it doesn't fit.
        TemporaryError: the network, the hub or the disk failed.
    """
    try:
        yield
    except RecaptionError:
        raise
    except torch.OutOfMemoryError as error:
        raise PermanentError(
            f"{what}: does not fit into the GPU's memory; use a larger GPU or a smaller model"
        ) from error
    except Exception as error:
        kind = TemporaryError if is_bad_luck(error) else PermanentError
        advice = "; run again" if kind is TemporaryError else "; check its name, its files and your access to it"
        message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        short = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
        raise kind(f"{what}: can't be loaded: {short}{advice}") from error


def is_bad_luck(error: BaseException) -> bool:
    """Return whether the same call may work later. Libraries wrap what happened, so every cause is looked at."""
    chain = list(chain_of(error))
    if any(isinstance(e, _SURE) and not isinstance(e, hub.LocalEntryNotFoundError) for e in chain):
        return False
    return any(_is_luck(e) for e in chain)


def _is_luck(error: BaseException) -> bool:
    if isinstance(error, hub.HfHubHTTPError):
        status = getattr(error.response, "status_code", 500)
        return status >= 500 or status in (408, 429)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    network = ("requests.", "urllib3.", "urllib.", "httpx", "httpcore", "socket")
    return isinstance(error, (ConnectionError, TimeoutError, hub.LocalEntryNotFoundError)) or (
        type(error).__module__.startswith(network)
    )

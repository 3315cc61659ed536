"""Asks the Hugging Face hub, or its cache on this machine, about a model: which commit, which files, which config."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from components.storage.model_files import OPEN_CLIP_CONFIG, read_object
from components.storage.secret import secret

HF_HUB = "hf-hub:"  # open_clip's prefix
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 10.0  # seconds for one answer: a plan must not wait for a hub that is not there
LARGEST = 4_000_000  # bytes of a config: those of models have some thousands
READ = ("config.json", OPEN_CLIP_CONFIG)


@dataclass(frozen=True)
class HubModel:
    """What is known of a repository at a revision."""

    commit: str | None = None
    """None where neither the hub nor its cache says it."""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name the configs that it has."""
    problem: str | None = None
    """Why nobody can load it, as the hub says."""
    unasked: str | None = None
    """Why the hub could not be asked."""


def repository_of(model: str) -> str | None:
    """Return the repository of the hub that a model's name means; None where it is a folder, or no such name."""
    name = model.removeprefix(HF_HUB)
    local = name == model and Path(name).expanduser().exists()
    return name if ID.fullmatch(name) and not local else None


def commit_of(model: str, revision: str | None) -> str | None:
    """Return the commit that a revision of a model of the hub is now; None where it is not known."""
    repository = repository_of(model)
    if repository is None:
        return None
    return revision if COMMIT.fullmatch(revision or "") else ask_hub(repository, revision).commit


@cache
def ask_hub(repository: str, revision: str | None) -> HubModel:
    """Return what the hub says of a repository; where it can't be reached, what of it lies in the hub's cache.

    The answer is remembered, so that a plan says one thing throughout: `forget` begins another.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=secret("HF_TOKEN"))
        found = api.model_info(repository, revision=revision, timeout=TIMEOUT)
        names = {sibling.rfilename for sibling in found.siblings or ()}
        configs = {name: _read(api, repository, name, str(found.sha)) for name in READ if name in names}
        return HubModel(found.sha, configs)
    except errors.GatedRepoError:
        return HubModel(problem="is gated: HF_TOKEN must be somebody's who was given access")
    except errors.RepositoryNotFoundError:
        return HubModel(problem="the hub has no such repository, or it is private and needs another HF_TOKEN")
    except errors.RevisionNotFoundError:
        return HubModel(problem=f"the hub has no revision {revision} of it")
    except errors.HFValidationError as error:
        return HubModel(problem=_in_one_line(error))
    except Exception as error:  # whatever the network, a proxy or an answer that is none brings
        try:
            folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            return HubModel(unasked=_in_one_line(error))
        configs = {name: read_object(folder / name) for name in READ if (folder / name).is_file()}
        return HubModel(folder.name, configs, unasked=_in_one_line(error))


def forget() -> None:
    """Ask the hub again, from now on."""
    ask_hub.cache_clear()


def _read(api: Any, repository: str, name: str, commit: str) -> Mapping[str, Any]:
    """Return a config; an empty one where the file is too large to be one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repository, name, revision=commit, endpoint=api.endpoint)
    if (get_hf_file_metadata(url, token=api.token, timeout=TIMEOUT).size or 0) > LARGEST:
        return {}
    path = hf_hub_download(repository, name, revision=commit, endpoint=api.endpoint, token=api.token)
    return read_object(Path(path))


def _in_one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]

"""What the pods of all runs in a cluster get, whatever the recipe: how they reach models and images, and their cache.

The operator reads it from its own environment, or `recaption pipeline compile` from its options; the compiled steps
have it in their environment, and those that launch Jobs and TrainJobs hand it on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.base.errors import PermanentError
from components.storage.fetching import CACHE

HANDED_ON = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Variables that every pod gets as the operator has them."""
PULL_SECRETS = "RECAPTION_PULL_SECRETS"
VOLUME = "RECAPTION_CACHE_VOLUME"
MOUNT = "/cache"  # where that volume is in a pod
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class PodSettings:
    """What the cluster's operator gives every pod."""

    variables: tuple[tuple[str, str], ...] = ()
    """Names out of HANDED_ON, and their values."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets of the registry, in the pods' namespace."""
    volume: str = ""
    """What keeps fetched models for all pods of a node: a PersistentVolumeClaim's name, or a folder of the node as an
    absolute path; empty: each pod fetches its own."""

    def __post_init__(self) -> None:
        """Raise PermanentError for a name that Kubernetes would refuse, or a variable that is not handed on."""
        for name, _ in self.variables:
            if name not in HANDED_ON:
                raise PermanentError(f"variable {name}: expected one of {', '.join(HANDED_ON)}")
        for name in self.pull_secrets:
            if not NAME.fullmatch(name):
                raise PermanentError(f"{PULL_SECRETS}: found {name}; expected names of Secrets with commas in between")
        if self.volume and not self.volume.startswith("/") and not NAME.fullmatch(self.volume):
            raise PermanentError(
                f"{VOLUME}: found {self.volume}; expected the name of a PersistentVolumeClaim, or an absolute path of "
                "the nodes"
            )

    @classmethod
    def from_environment(cls, given: Mapping[str, str] = os.environ) -> PodSettings:
        """Read the settings. Raises PermanentError for a name that Kubernetes would refuse."""
        return cls(
            variables=tuple((name, given[name]) for name in HANDED_ON if given.get(name)),
            pull_secrets=tuple(filter(None, (name.strip() for name in given.get(PULL_SECRETS, "").split(",")))),
            volume=given.get(VOLUME, "").strip(),
        )

    def as_environment(self) -> dict[str, str]:
        """Return the variables from which `from_environment` makes the same settings."""
        secrets, volume = ",".join(self.pull_secrets), self.volume
        return {
            **dict(self.variables),
            **({PULL_SECRETS: secrets} if secrets else {}),
            **({VOLUME: volume} if volume else {}),
        }

    def worker_env(self) -> list[dict[str, str]]:
        """Return the variables of a worker's container."""
        cache = [(CACHE, MOUNT), ("HF_HUB_CACHE", f"{MOUNT}/hub")] if self.volume else []
        return [{"name": name, "value": value} for name, value in (*self.variables, *cache)]

    def volumes(self) -> list[dict[str, Any]]:
        """Return the volumes of a worker's pod."""
        if not self.volume:
            return []
        if self.volume.startswith("/"):
            return [{"name": "cache", "hostPath": {"path": self.volume, "type": "DirectoryOrCreate"}}]
        return [{"name": "cache", "persistentVolumeClaim": {"claimName": self.volume}}]

    def mounts(self) -> list[dict[str, str]]:
        """Return where a worker's container has these volumes."""
        return [{"name": "cache", "mountPath": MOUNT}] if self.volume else []

    def image_pull_secrets(self) -> dict[str, Any]:
        """Return the part of a pod's spec that names the registry's Secrets."""
        return {"imagePullSecrets": [{"name": name} for name in self.pull_secrets]} if self.pull_secrets else {}

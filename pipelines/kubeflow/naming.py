"""Names of the pipeline and its versions in KFP, without importing the compiler, which takes 25 MB."""

from __future__ import annotations

import hashlib

import yaml

from components.base.version import version

NAME = "recaption"
ABOUT = "Captions, scores and mixes a pool of image-text pairs, trains CLIP on each mixture and evaluates it."


def version_name(package: str) -> str:
    """Return the version name of a package: the same content has the same name. It may name a Kubernetes object."""
    content = list(yaml.safe_load_all(package))
    content[0].pop("sdkVersion", None)
    digest = hashlib.sha256(yaml.safe_dump_all(content).encode()).hexdigest()[:12]
    return f"{NAME}-{version().replace('+', '-')}-{digest}"

"""How the pipeline and its versions are called in KFP; apart from the compiler, which takes 25 MB."""

from __future__ import annotations

import hashlib

import yaml

from components.base.version import version

NAME = "recaption"
ABOUT = "Captions, scores and mixes a pool of image-text pairs, trains CLIP on each mixture and evaluates it."


def version_name(package: str) -> str:
    """A package's name in KFP: the same content is the same version. Fit to name a Kubernetes object."""
    content = list(yaml.safe_load_all(package))
    content[0].pop("sdkVersion", None)
    digest = hashlib.sha256(yaml.safe_dump_all(content).encode()).hexdigest()[:12]
    return f"{NAME}-{version().replace('+', '-')}-{digest}"

"""The compiled package: what KFP takes, the same bytes for the same code and images."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from components.pool import version
from pipelines.kubeflow.graph import NAME, pipeline


def compile_package(images: str = NAME, tag: str | None = None) -> str:
    """The pipeline as KFP's YAML: its specification, and what of it is Kubernetes'.

    Args:
        images: What comes before -operator, -cpu and -gpu in the images' names.
        tag: Their tag; None is this version.
    """
    return _compiled(images, tag)


def compile_manifests(images: str = NAME, tag: str | None = None, namespace: str | None = None) -> str:
    """The same as Kubernetes objects, for a KFP whose API server keeps pipelines in Kubernetes: `kubectl apply -f`."""
    options = compiler.compiler_utils.KubernetesManifestOptions(
        pipeline_name=NAME,
        pipeline_version_name=version_name(compile_package(images, tag)),
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    return _compiled(images, tag, kubernetes_manifest_format=True, kubernetes_manifest_options=options)


def version_name(package: str) -> str:
    """A package's name in KFP: the same content is the same version. Fit to name a Kubernetes object."""
    content = list(yaml.safe_load_all(package))
    content[0].pop("sdkVersion", None)
    digest = hashlib.sha256(yaml.safe_dump_all(content).encode()).hexdigest()[:12]
    return f"{NAME}-{version().replace('+', '-')}-{digest}"


def _compiled(images: str, tag: str | None, **how: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline(images, tag), str(path), **how)
        return path.read_text(encoding="utf-8")

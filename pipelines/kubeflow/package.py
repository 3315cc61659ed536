"""The compiled package: what KFP takes, the same bytes for the same code and images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines.kubeflow.graph import pipeline
from pipelines.kubeflow.naming import NAME, version_name


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


def _compiled(images: str, tag: str | None, **how: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline(images, tag), str(path), **how)
        return path.read_text(encoding="utf-8")

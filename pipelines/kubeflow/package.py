"""The compiled package that KFP takes: the same bytes for the same code and images."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines.kubeflow.graph import pipeline
from pipelines.kubeflow.naming import NAME, version_name
from pipelines.kubernetes.pod_settings import PodSettings


def compile_package(images: str = NAME, tag: str | None = None, pods: PodSettings | None = None) -> str:
    """Compile the pipeline to KFP's YAML: the specification of the pipeline and that of its platform, Kubernetes.

    Args:
        images: Prefix of the images' names, before -operator, -cpu and -gpu.
        tag: Their tag; None is this version.
        pods: What all pods of its runs get; None is nothing.
    """
    return _compiled(images, tag, pods)


def compile_manifests(
    images: str = NAME, tag: str | None = None, namespace: str | None = None, pods: PodSettings | None = None
) -> str:
    """Compile the pipeline to Kubernetes objects, for a KFP that keeps its pipelines in Kubernetes."""
    options = compiler.compiler_utils.KubernetesManifestOptions(
        pipeline_name=NAME,
        pipeline_version_name=version_name(compile_package(images, tag, pods)),
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    return _compiled(images, tag, pods, kubernetes_manifest_format=True, kubernetes_manifest_options=options)


def _compiled(images: str, tag: str | None, pods: PodSettings | None, **how: Any) -> str:
    def compiled() -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            compiler.Compiler().compile(pipeline(images, tag, pods), str(path), **how)
            return path.read_text(encoding="utf-8")

    # kfp calls inspect.stack() for every setting of a task, whose time is that of the callers times the modules
    # imported: seconds below a deep caller. A thread of its own has no callers.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compiled).result()

"""The operator's settings, read from its environment, which manifests/base sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from components.base.errors import PermanentError
from components.base.version import version
from pipelines.kubernetes.pod_settings import PodSettings
from pipelines.operator.runtime.tenants import Tenants


@dataclass(frozen=True)
class Settings:
    """The operator's settings; `from_environment` has the names of the variables."""

    endpoint: str
    """KFP's API server."""
    ui: str
    """Address of KFP's UI, for links; empty where it isn't given: no browser reaches the endpoint itself."""
    images: str = "recaption"
    """Prefix of the images' names, before -operator, -cpu and -gpu."""
    tag: str | None = None
    """The images' tag; None is this version."""
    token_file: Path | None = None
    ca: str | None = None
    kfp_namespace: str = "kubeflow"
    """Namespace of the pods of a KFP with one user; with several users it is the object's own namespace."""
    kfp_service_account: str | None = None
    watched: tuple[str, ...] = ()
    """Namespaces to watch; empty means all."""
    port: int = 8080
    namespace: str = "default"
    """The operator's own namespace, which has its Lease."""
    identity: str = "operator"
    """The holder of the Lease: the pod's name."""
    tenants: Tenants = field(default_factory=Tenants)
    """What a recipe of each namespace may ask for, and whom its pods run as."""
    pods: PodSettings = field(default_factory=PodSettings)
    """What all pods of the runs get."""

    @classmethod
    def from_environment(cls, given: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings. Raises PermanentError where the endpoint is missing or a number is none."""
        endpoint = given.get("KF_PIPELINES_ENDPOINT", "").rstrip("/")
        if not endpoint.startswith(("http://", "https://")):
            raise PermanentError(
                f"KF_PIPELINES_ENDPOINT: found {endpoint or 'nothing'}; expected KFP's API server, "
                "such as http://ml-pipeline.kubeflow:8888"
            )
        port = given.get("RECAPTION_PORT") or "8080"
        if not port.isdecimal() or int(port) > 65535:
            raise PermanentError(f"RECAPTION_PORT: found {port}; expected a port such as 8080")
        token = given.get("RECAPTION_KFP_TOKEN_FILE")
        return cls(
            endpoint=endpoint,
            ui=given.get("RECAPTION_KFP_UI", "").rstrip("/"),
            images=given.get("RECAPTION_IMAGES") or cls.images,
            tag=given.get("RECAPTION_TAG") or version(),
            token_file=Path(token) if token else None,
            ca=given.get("RECAPTION_KFP_CA") or None,
            kfp_namespace=given.get("RECAPTION_KFP_NAMESPACE") or cls.kfp_namespace,
            kfp_service_account=given.get("RECAPTION_KFP_SERVICE_ACCOUNT") or None,
            watched=tuple(filter(None, (n.strip() for n in given.get("RECAPTION_WATCH_NAMESPACES", "").split(",")))),
            port=int(port),
            namespace=given.get("POD_NAMESPACE") or cls.namespace,
            identity=given.get("POD_NAME") or os.uname().nodename,
            tenants=Tenants.from_environment(given),
            pods=PodSettings.from_environment(given),
        )

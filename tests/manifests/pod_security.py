"""Kubernetes' Pod Security Standard "restricted", control by control (of version 1.36, for Linux pods)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"),
    "secret",
}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def violations(metadata: Object, spec: Object) -> set[str]:
    """The controls that a pod's (or its template's) metadata and spec break."""
    containers = [c for key in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(key, [])]
    found = set(_of_pod(metadata, spec))
    for container in containers:
        found.update(_of_container(container, spec.get("securityContext", {})))
    return found


def _of_pod(metadata: Object, spec: Object) -> Iterator[str]:
    context = spec.get("securityContext", {})
    yield from _of_contexts(context)
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "host namespaces"
    if any(set(volume) - {"name"} - VOLUMES for volume in spec.get("volumes", [])):
        yield "volume types"
    if any(sysctl["name"] not in SYSCTLS for sysctl in context.get("sysctls", [])):
        yield "sysctls"
    profiles = [value for key, value in metadata.get("annotations", {}).items() if key.startswith(APPARMOR)]
    if any(value != "runtime/default" and not value.startswith("localhost/") for value in profiles):
        yield "AppArmor"


def _of_container(container: Object, pod: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    yield from _of_contexts(context)
    if context.get("privileged"):
        yield "privileged containers"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "privilege escalation"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "running as non-root"
    if "seccompProfile" not in {**pod, **context}:
        yield "seccomp"
    if context.get("procMount", "Default") != "Default":
        yield "/proc mount type"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "host ports"
    actions = [container.get(key, {}) for key in ("livenessProbe", "readinessProbe", "startupProbe")]
    actions += container.get("lifecycle", {}).values()
    if any(action.get(kind, {}).get("host") for action in actions for kind in ("httpGet", "tcpSocket")):
        yield "host probes"


def _of_contexts(context: Object) -> Iterator[str]:
    """What a pod's and a container's security context have in common."""
    if context.get("runAsUser") == 0:
        yield "running as non-root user"
    if "seccompProfile" in context and context["seccompProfile"]["type"] not in PROFILES:
        yield "seccomp"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in PROFILES:
        yield "AppArmor"
    labels = context.get("seLinuxOptions", {})
    if labels.get("type", "") not in SELINUX or labels.get("user") or labels.get("role"):
        yield "SELinux"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "host process"

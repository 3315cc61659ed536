"""Pods that each break one control of the restricted Pod Security Standard: by the control and a number."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

Object = dict[str, Any]

GOOD: Object = {
    "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "main",
            "image": "registry.example/main:1",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}

# Control; what the pod's spec has beside; what its container has beside. None takes a key away.
_CHANGES: list[tuple[str, Object, Object]] = [
    ("host namespaces", {"hostNetwork": True}, {}),
    ("host namespaces", {"hostPID": True}, {}),
    ("host namespaces", {"hostIPC": True}, {}),
    ("volume types", {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, {}),
    ("volume types", {"volumes": [{"name": "v", "nfs": {"server": "nfs.example", "path": "/"}}]}, {}),
    ("sysctls", {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}, {}),
    ("running as non-root", {"securityContext": {"runAsNonRoot": None}}, {}),
    ("running as non-root", {}, {"securityContext": {"runAsNonRoot": False}}),
    ("running as non-root user", {"securityContext": {"runAsUser": 0}}, {}),
    ("running as non-root user", {}, {"securityContext": {"runAsUser": 0}}),
    ("seccomp", {"securityContext": {"seccompProfile": None}}, {}),
    ("seccomp", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, {}),
    ("seccomp", {}, {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
    ("AppArmor", {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, {}),
    ("AppArmor", {}, {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
    ("SELinux", {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, {}),
    ("SELinux", {}, {"securityContext": {"seLinuxOptions": {"role": "system_r"}}}),
    ("privilege escalation", {}, {"securityContext": {"allowPrivilegeEscalation": None}}),
    ("capabilities", {}, {"securityContext": {"capabilities": None}}),
    ("capabilities", {}, {"securityContext": {"capabilities": {"drop": ["NET_RAW"]}}}),
    ("capabilities", {}, {"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}),
    ("host ports", {}, {"ports": [{"containerPort": 80, "hostPort": 80}]}),
    ("host probes", {}, {"livenessProbe": {"httpGet": {"host": "169.254.169.254", "path": "/", "port": 80}}}),
    ("host probes", {}, {"lifecycle": {"preStop": {"httpGet": {"host": "10.0.0.1", "path": "/", "port": 80}}}}),
]


def bad_pods() -> dict[str, tuple[str, Object]]:
    """Control and spec, by a name that a pod may have."""
    pods = {}
    for i, (control, of_pod, of_container) in enumerate(_CHANGES):
        spec = merged(GOOD, of_pod)
        spec["containers"] = [merged(GOOD["containers"][0], of_container)]
        pods[f"{control.lower().replace(' ', '-')}-{i}"] = (control, spec)
    init = merged(GOOD["containers"][0], {"name": "init", "securityContext": {"allowPrivilegeEscalation": None}})
    pods["of-an-init-container"] = ("privilege escalation", {**GOOD, "initContainers": [init]})
    return pods


def merged(base: Object, changes: Object) -> Object:
    made = deepcopy(base)
    for key, value in changes.items():
        if value is None:
            made.pop(key)
        else:
            made[key] = merged(made[key], value) if isinstance(made.get(key), dict) else value
    return made

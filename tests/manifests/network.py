"""What NetworkPolicies allow, decided as Kubernetes documents it: for one pod, one direction and one peer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    namespace: str
    labels: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector matches."""
    for need in selector.get("matchExpressions", []):
        there, value = need["key"] in labels, labels.get(need["key"])
        verdicts = {
            "In": there and value in need.get("values", []),
            "NotIn": value not in need.get("values", []),
            "Exists": there,
            "DoesNotExist": not there,
        }
        if not verdicts[need["operator"]]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def applying(policies: Iterable[Object], pod: Pod, direction: str) -> list[Object]:
    """The policies that isolate a pod in this direction: none means that all is allowed."""
    return [
        p
        for p in policies
        if p["metadata"]["namespace"] == pod.namespace
        and direction in p["spec"]["policyTypes"]
        and selects(p["spec"]["podSelector"], pod.labels)
    ]


def allowed(policies: Iterable[Object], pod: Pod, direction: str, peer: Pod | str, port: int, protocol: str) -> bool:
    """Whether a pod may reach (Egress) or be reached by (Ingress) another pod or an address."""
    isolating = applying(policies, pod, direction)
    rules = [rule for policy in isolating for rule in policy["spec"].get(direction.lower(), [])]
    target = peer if direction == "Egress" else pod
    peers = "to" if direction == "Egress" else "from"
    return not isolating or any(
        ("ports" not in rule or any(_is_port(p, target, port, protocol) for p in rule["ports"]))
        and (peers not in rule or any(_is_peer(p, pod.namespace, peer) for p in rule[peers]))
        for rule in rules
    )


def _is_port(rule: Object, target: Pod | str, port: int, protocol: str) -> bool:
    number = rule["port"]
    if isinstance(number, str):
        number = target.ports.get(number) if isinstance(target, Pod) else None
    return bool(number == port and rule.get("protocol", "TCP") == protocol)


def _is_peer(rule: Object, namespace: str, peer: Pod | str) -> bool:
    if isinstance(peer, str):
        block = rule.get("ipBlock")
        inside = block is not None and _within(peer, block["cidr"])
        return inside and not any(_within(peer, cidr) for cidr in block.get("except", []))
    if "ipBlock" in rule:
        return False
    if "namespaceSelector" in rule:
        there = selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
    else:
        there = peer.namespace == namespace
    return there and selects(rule.get("podSelector", {}), peer.labels)


def _within(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_network(cidr)

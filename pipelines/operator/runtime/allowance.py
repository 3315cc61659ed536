"""What a recipe may ask for: `spec.compute` makes pods, `spec.storage` is written to, and a tenant writes both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from pydantic.alias_generators import to_camel

from components.base.errors import PermanentError
from components.recipe.compute import Compute
from components.recipe.nodes import gpus_per_node, pools_for, train_pool
from components.recipe.recipe import Spec

EVERY = "<every>"
"""Stands for the key of a toleration that has none, which tolerates every taint."""
NUMBERS = {"parallelism": "pods", "gpus": "devices"}


class NotAllowed(PermanentError):
    """A recipe asks for what this cluster's operator does not let its namespace have."""


@dataclass(frozen=True)
class Allowance:
    """Patterns of what is allowed, and numbers of pods and devices. A pattern may have `*`; one after `!` refuses.

    The first pattern that matches decides; what none matches is refused.
    """

    storages: tuple[str, ...] = ("*",)
    """Addresses: gs://bucket/team/*."""
    priority_classes: tuple[str, ...] = ("!system-*", "*")
    node_selectors: tuple[str, ...] = ("!node-role.kubernetes.io/*", "!kubernetes.io/role", "*")
    """Keys of the labels, or key=value."""
    tolerations: tuple[str, ...] = (
        f"!{EVERY}",
        "!node-role.kubernetes.io/*",
        "!node.kubernetes.io/*",
        "!node.cloudprovider.kubernetes.io/*",
        "*",
    )
    """Keys of the taints."""
    resources: tuple[str, ...] = (
        *("nvidia.com/*", "amd.com/*", "gpu.intel.com/*", "habana.ai/*", "google.com/tpu", "aws.amazon.com/neuron*"),
    )
    """Names of accelerators."""
    parallelism: int = 1000
    """Pods that one recipe's stages may have at once, and nodes that its trainings may have."""
    gpus: int = 10_000
    """Devices that one recipe's stages may have at once, and that its trainings may have."""
    tenant: str = ""
    """The namespaces that this holds for; empty: for all."""
    own: frozenset[str] = frozenset()
    """The fields that hold for these namespaces only."""

    @classmethod
    def from_environment(cls, given: Mapping[str, str]) -> Allowance:
        """Read what is allowed for all namespaces. Raises PermanentError where a number is none."""
        found: dict[str, Any] = {}
        for declared in fields(cls):
            if declared.name in ("tenant", "own") or not (text := given.get(variable(declared.name))):
                continue
            found[declared.name] = tuple(part.strip() for part in text.split(",") if part.strip())
            if what := NUMBERS.get(declared.name):
                if not text.isdecimal() or int(text) < 1:
                    raise PermanentError(
                        f"{variable(declared.name)}: found {text}; expected a number of {what} such as "
                        f"{declared.default}"
                    )
                found[declared.name] = int(text)
        return cls(**found)

    def check(self, spec: Spec, root: str = "spec") -> None:
        """Check what a recipe asks for. Raises NotAllowed: a line for everything that is not allowed."""
        problems = list(self._problems(spec.compute, f"{root}.compute"))
        if ".." in spec.storage.split("/") or not _matches([spec.storage], self.storages):
            problems.insert(0, f"{root}.storage: found {spec.storage}; {self._said('storages')}")
        if problems:
            raise NotAllowed("\n".join(problems))

    def _problems(self, compute: Compute, root: str) -> Iterator[str]:
        for i, pool in enumerate(compute.pools):
            asked: list[tuple[str, str, list[str]]] = []
            asked += [("priority_classes", "priorityClass", [pool.priority_class])] if pool.priority_class else []
            asked += [("node_selectors", "nodeSelector", [k, f"{k}={v}"]) for k, v in pool.node_selector.items()]
            asked += [
                ("tolerations", f"tolerations[{t}].key", [x.key or EVERY]) for t, x in enumerate(pool.tolerations)
            ]
            asked += [("resources", "accelerator.resource", [pool.device])] if pool.device else []
            for name, key, names in asked:
                if not _matches(names, getattr(self, name)):
                    found = "nothing, which is every taint" if names == [EVERY] else names[-1]
                    yield f"{root}.pools[{i}].{key}: found {found}; {self._said(name)}"
        for name, where, number in _numbers(compute):
            if number > getattr(self, name):
                yield f"{root}.{where}: found {number:,} in all; {self._said(name)}"

    def _said(self, name: str) -> str:
        """Say in words which values are allowed, and where that is set."""
        where = f"{to_camel(name)} of {self.tenant} in RECAPTION_TENANTS" if name in self.own else variable(name)
        if name in NUMBERS:
            return f"this cluster allows {getattr(self, name):,} ({where} of the operator)"
        patterns: tuple[str, ...] = getattr(self, name)
        taken = [pattern for pattern in patterns if not pattern.startswith("!")]
        refused = [pattern[1:] for pattern in patterns if pattern.startswith("!") and pattern != f"!{EVERY}"]
        what = "all" if taken == ["*"] else ", ".join(taken) or "none"
        but = f" but {', '.join(refused)}" if refused else ""
        return f"this cluster allows {what}{but} ({where} of the operator)"


def _numbers(compute: Compute) -> Iterator[tuple[str, str, int]]:
    """Yield how many pods and devices the stages have at once, and how many nodes and devices the trainings."""
    train = compute.train
    nodes, devices = train.nodes * train.parallelism, gpus_per_node(train, train_pool(compute))
    asked = sum(pool.parallelism * pool.accelerator.count for pool in pools_for(compute, gpu=True) if pool.accelerator)
    yield "parallelism", "pools: parallelism", sum(pool.parallelism for pool in compute.pools)
    yield "parallelism", "train: nodes × parallelism", nodes
    yield "gpus", "pools: parallelism × accelerator.count", asked
    yield "gpus", "train: nodes × parallelism × gpusPerNode", nodes * devices


def variable(name: str) -> str:
    """Return the name of the operator's environment variable with these patterns."""
    return f"RECAPTION_ALLOW_{name.upper()}"


def _matches(names: Sequence[str], patterns: tuple[str, ...]) -> bool:
    """Say whether the first pattern that matches one of these names allows it."""
    for pattern in patterns:
        if any(fnmatchcase(name, pattern.removeprefix("!")) for name in names):
            return not pattern.startswith("!")
    return False

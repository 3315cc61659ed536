"""What a recipe may ask of the cluster's nodes: `spec.compute` makes pods, and a tenant writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from components.base.errors import PermanentError
from components.recipe.compute import Compute

EVERY = "<every>"
"""Stands for the key of a toleration that has none, which tolerates every taint."""
PARALLELISM = "RECAPTION_ALLOW_PARALLELISM"


class NotAllowed(PermanentError):
    """A recipe asks for what this cluster's operator does not let it have."""


@dataclass(frozen=True)
class Allowance:
    """Patterns of what is allowed, and the number of pods. Each pattern may have `*`; one after `!` refuses.

    The first pattern that matches decides; what none matches is refused.
    """

    priority_classes: tuple[str, ...] = ("!system-*", "*")
    node_selectors: tuple[str, ...] = ("!node-role.kubernetes.io/*", "!kubernetes.io/role", "*")
    """Keys of the labels."""
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

    @classmethod
    def from_environment(cls, given: Mapping[str, str]) -> Allowance:
        """Read what is allowed. Raises PermanentError where the parallelism is no number."""
        lists = {
            declared.name: tuple(part.strip() for part in text.split(",") if part.strip())
            for declared in fields(cls)
            if declared.name != "parallelism" and (text := given.get(variable(declared.name)))
        }
        number = given.get(PARALLELISM) or str(cls.parallelism)
        if not number.isdecimal() or int(number) < 1:
            raise PermanentError(f"{PARALLELISM}: found {number}; expected a number of pods such as {cls.parallelism}")
        return cls(**lists, parallelism=int(number))

    def check(self, compute: Compute, root: str = "spec") -> None:
        """Check what a recipe asks for. Raises NotAllowed: a line for everything that is not allowed."""
        if problems := list(self._problems(compute, f"{root}.compute")):
            raise NotAllowed("\n".join(problems))

    def _problems(self, compute: Compute, root: str) -> Iterator[str]:
        for i, pool in enumerate(compute.pools):
            asked: list[tuple[str, str, Any]] = [("priority_classes", "priorityClass", pool.priority_class)]
            asked += [("node_selectors", "nodeSelector", key) for key in pool.node_selector]
            asked += [("tolerations", f"tolerations[{t}].key", x.key or EVERY) for t, x in enumerate(pool.tolerations)]
            asked += [("resources", "accelerator.resource", pool.device)]
            for name, key, value in asked:
                if value is not None and not _matches(value, getattr(self, name)):
                    found = "nothing, which is every taint" if value == EVERY else value
                    yield f"{root}.pools[{i}].{key}: found {found}; {self._said(name)}"
        pods, nodes = sum(pool.parallelism for pool in compute.pools), compute.train.nodes * compute.train.parallelism
        for where, number in (("pools: parallelism", pods), ("train: nodes × parallelism", nodes)):
            if number > self.parallelism:
                most = f"this cluster allows {self.parallelism:,} ({PARALLELISM} of the operator)"
                yield f"{root}.{where}: found {number:,} in all; {most}"

    def _said(self, name: str) -> str:
        """Say in words which values are allowed, and where that is set."""
        patterns: tuple[str, ...] = getattr(self, name)
        taken = [pattern for pattern in patterns if not pattern.startswith("!")]
        refused = [pattern[1:] for pattern in patterns if pattern.startswith("!") and pattern != f"!{EVERY}"]
        what = "all" if taken == ["*"] else ", ".join(taken) or "none"
        but = f" but {', '.join(refused)}" if refused else ""
        return f"this cluster allows {what}{but} ({variable(name)} of the operator)"


def variable(name: str) -> str:
    """Return the name of the operator's environment variable with these patterns."""
    return f"RECAPTION_ALLOW_{name.upper()}"


def _matches(value: str, patterns: tuple[str, ...]) -> bool:
    for pattern in patterns:
        if fnmatchcase(value, pattern.removeprefix("!")):
            return not pattern.startswith("!")
    return False

"""What makes a column, and what the index finds in a shard: the two things that name a column's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from components.base.hashing import content_hash


@dataclass(frozen=True)
class ColumnSpec:
    """What made a column: everything its content depends on, and nothing else."""

    stage: str
    label: str
    """Readable start of the folder's name, derived from the parameters (never from a recipe's own names)."""
    version: int
    params: Mapping[str, Any]
    inputs: Mapping[str, ColumnSpec] = field(default_factory=dict)
    """By role: the columns it is computed from."""

    @cached_property
    def hash(self) -> str:
        inputs = {role: spec.hash for role, spec in self.inputs.items()}
        return content_hash([self.stage, self.version, dict(self.params), inputs])

    @cached_property
    def reads_texts(self) -> bool:
        """Whether raw texts decide its values: something other than the list of samples, which is the role `index`, is
        the index, or is made from it in that way."""
        others = (spec for role, spec in self.inputs.items() if role != "index")
        return any(not spec.inputs or spec.reads_texts for spec in others)

    @property
    def folder(self) -> str:
        return f"{self.stage}.{self.label}-{self.hash}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "inputs": {role: spec.to_json() for role, spec in self.inputs.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ColumnSpec:
        inputs = {role: cls.from_json(spec) for role, spec in value["inputs"].items()}
        return cls(value["stage"], value["label"], value["version"], value["params"], inputs)


@dataclass(frozen=True)
class Content:
    """What the index found in a shard, as hashes: equal ones have the same values in every column."""

    images: str
    """Of uids and images' bytes, and of which samples are usable."""
    samples: str
    """Of these, and of texts and metadata."""

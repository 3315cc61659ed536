"""What a stage declares about itself. Importing a declaration imports nothing heavy.

A column is declared once, as a subclass of ColumnStage in `components/<stage>/stage.py`; the worker loop, the
command line, the container step and the README's table derive from it. A Step does anything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.base.errors import PermanentError
from components.engine.images import Geometry, Pixels
from components.pool.columns import ColumnSpec, Content
from components.pool.shards import Shard

if TYPE_CHECKING:
    from components.pool.run import Run

DTYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "float32": pa.float32(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "string": pa.string(),
    "boxes": pa.list_(pa.list_(pa.float32())),  # [x0, y0, x1, y1] each, in [0, 1] of width and height
}


@dataclass(frozen=True)
class Field:
    """One value per sample."""

    name: str
    dtype: str
    """A key of DTYPES, or `float16[D]`: a vector whose length the model gives."""
    meaning: str
    """Unit, range and direction, e.g. `cosine, [-1, 1], higher = closer`; what null means."""
    width: int | None = None
    """Of a vector, once setup() knows the model: a batch of nothing but nulls doesn't show it."""

    def array(self, values: Sequence[Any]) -> pa.Array:
        """The values as Arrow, None as null."""
        if self.dtype != "float16[D]":
            return pa.array(values, DTYPES[self.dtype])
        width = self.width or next((len(v) for v in values if v is not None), 1)
        flat = np.zeros((len(values), width), np.float16)
        for row, value in enumerate(values):
            if value is not None:
                flat[row] = value
        missing = pa.array([v is None for v in values], pa.bool_())
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), width, mask=missing)


def vectors_of(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """(B, D) of a float16[D] column without nulls."""
    flat: NDArray[np.float16] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


@dataclass(frozen=True)
class Needs:
    """What one worker of a stage wants from its node."""

    memory_gib: float
    gpu: bool = False


@dataclass
class Batch:
    """Samples of one shard. Rows of every part are the samples in `uids`, in that order."""

    shard: Shard
    uids: list[str]
    images: Pixels | None = None
    """(B, H, W, 3) uint8 of the stage's geometry, where the stage reads `image`."""
    pictures: Sequence[Pixels] = ()
    """Instead of `images`, where the geometry's mode is `inside`: B arrays of different height and width."""
    inputs: Mapping[str, pa.Table] = field(default_factory=dict)
    """By role: the rows of that input column; a row absent there is null."""
    tar: BinaryIO | None = None
    """The open shard, where the stage reads `tar`; then uids is empty and the stage returns `uid` itself."""
    counts: dict[str, int] = field(default_factory=dict)
    """Reasons a stage counts that belong to no row."""
    content: Content | None = None
    """Set by the stage that indexes the shard: what is in it."""


class Stage(ABC):
    """What every stage says about itself."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for the README's table and `recaption stages`."""
    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[str]
    needs: ClassVar[Needs]


class ColumnStage(Stage):
    """A function from a batch to one value per sample, run by the one worker loop.

    `reads` names what a batch must hold: `tar` (the whole shard), `image` (decoded pixels), or the roles of the
    spec's input columns. The role `index` only lists the samples and is not among them: a stage that reads raw texts
    has the index as another role as well, so that its values are not taken for those of other texts.
    """

    fields: tuple[Field, ...]
    version: ClassVar[int]
    """Part of the column's hash: raise it when the code would write other values."""
    batch_size: ClassVar[int] = 256
    geometry: Geometry | None = None
    """Set by setup() where the stage reads `image`."""

    def __init__(self, spec: ColumnSpec) -> None:
        self.spec = spec

    def setup(self, uids: Callable[[], Iterable[str]]) -> None:
        """Load models, once before the first batch; `uids` lists all samples of the task, for joins."""

    @abstractmethod
    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """One value per row for every declared field; None is null. `error` may hold a reason per row."""


class Step(Stage):
    """Anything that is no column: reads the run's parts of the storage, writes its own."""

    divisible: ClassVar[bool] = False
    """Whether pods can share the work: each runs a task of it, in any order, then `run` writes what is left."""
    spread: ClassVar[bool] = False
    """Whether its tasks are cut so that on one machine a process per core works best."""
    unit: ClassVar[str] = ""
    """What `progress` counts, e.g. files; empty where it counts nothing."""
    counts: ClassVar[str] = "samples"
    """What it counts within its shards."""

    def __init__(self, part: str = "") -> None:
        """`part`: of a step that a run has several times, which one: what follows the colon of `download:2`."""
        self.part = part
        self.progress: Callable[[int, int], None] = lambda samples, units: None

    @abstractmethod
    def run(self, run: Run) -> None:
        """Do what is missing. Running it again does nothing twice and gives the same bytes."""

    def count_tasks(self, run: Run) -> int:
        """How many tasks a divisible step has in this run: as many indexes a Job starts."""
        return run.tasks

    def unfinished(self, run: Run, done: bool) -> Sequence[int]:
        """Which tasks a Job is to do; `done`: whether the run's status says that the step was finished once.

        By default all, or none: what is missing of a step that was done is little, and `run` finds it.
        """
        return () if done else range(self.count_tasks(run))

    def count_units(self, run: Run, task: int | None) -> int:
        """How many units a task has, or all tasks together."""
        return 0

    def outcome(self, run: Run) -> dict[str, Any]:
        """What status.json shall say of it besides its time: `samples`, `failures` by reason."""
        return {}

    def run_task(self, run: Run, task: int, tasks: int) -> None:
        """Do what is missing of part `task` of `tasks`; `run` afterwards gives the same bytes as `run` alone."""
        raise PermanentError(f"stage {self.name}: has no tasks, it works on the whole run; leave --task out")

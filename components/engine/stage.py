"""What a stage declares about itself. Importing a declaration imports nothing heavy.

A column is declared once, as a subclass of ColumnStage in `components/stages/<stage>/stage.py`, with a subclass of
Options for each kind of column that it computes. The recipe's model, its schema in a cluster, the plan and its
estimate, the graph, the worker loop, the report and the documentation follow from it. A Step does anything else.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from components.base.errors import PermanentError
from components.base.hashing import said
from components.pool.specs import ColumnSpec, Content
from components.recipe.columns import Options
from components.recipe.types import Model, outside_of
from components.storage.fetching import fetched
from components.storage.fingerprint import absence, commit_in, model_fingerprint, path_fingerprint

if TYPE_CHECKING:  # the operator reads declarations, and needs neither numpy nor pyarrow for anything else
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from components.engine.images import Geometry, Pixels
    from components.pool.identities import Samples
    from components.pool.run import Run
    from components.pool.shards import Shard
    from components.recipe.recipe import Spec

DTYPES = ("bool", "float32", "int32", "int64", "string", "boxes")
"""What a value can be, besides `float16[D]`: a vector whose length the model gives."""


def arrow_type(dtype: str) -> pa.DataType:
    """Return the Arrow type of a value of DTYPES; boxes are [x0, y0, x1, y1] each, in [0, 1] of width and height."""
    import pyarrow as pa

    if dtype == "boxes":
        return pa.list_(pa.list_(pa.float32()))
    return pa.type_for_alias(dtype)


@dataclass(frozen=True)
class Field:
    """One value per sample."""

    name: str
    dtype: str
    """One of DTYPES, or `float16[D]`."""
    meaning: str
    """Unit, range and direction, e.g. `cosine, [-1, 1], higher = closer`; what null means."""
    width: int | None = None
    """Of a vector, once setup() knows the model: a batch of nothing but nulls doesn't show it."""

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Return the values as an Arrow array, None as null."""
        import numpy as np
        import pyarrow as pa

        if self.dtype != "float16[D]":
            return pa.array(values, arrow_type(self.dtype))
        width = self.width or next((len(v) for v in values if v is not None), 1)
        flat = np.zeros((len(values), width), np.float16)
        for row, value in enumerate(values):
            if value is not None:
                flat[row] = value
        missing = pa.array([v is None for v in values], pa.bool_())
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), width, mask=missing)


def vectors_of(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """Return a float16[D] column without nulls as (B, D)."""
    flat: NDArray[np.float16] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def score_rows(
    column: pa.ChunkedArray, score: Callable[[Any], NDArray[np.float32]], missing: str | None
) -> dict[str, list[Any]]:
    """Score the rows of an input that are there: what `process` returns for one field called `score`.

    Args:
        column: texts, or embeddings as float16[D].
        score: from texts, or from (B, D) float16 unit vectors, to (B,) scores.
        missing: the reason that a row without a value gets; None where such a row is no failure.
    """
    import pyarrow as pa

    there = column.is_valid().to_pylist()
    given: Any = column.drop_null()
    given = vectors_of(given) if pa.types.is_fixed_size_list(column.type) and len(given) else given.to_pylist()
    scores = iter(score(given) if len(given) else ())
    return {
        "score": [float(next(scores)) if row else None for row in there],
        "error": [None if row else missing for row in there],
    }


NO_EMBEDDING = "image without an embedding"  # the reason of a row whose image could not be read


@dataclass(frozen=True)
class Rate:
    """Samples per second that were stated or measured for a stage."""

    a100: float
    """Of one A100."""
    core: float
    """Of one CPU core."""

    def times(self, factor: float) -> Rate:
        return Rate(self.a100 * factor, self.core * factor)


FREE = Rate(math.inf, math.inf)  # what costs next to nothing beside a model


DECODER_GIB = 0.625  # of a process that decodes images: images.MAX_BYTES, and Python with its libraries


@dataclass(frozen=True)
class Finding:
    """One line that a plan says of a recipe before anything is computed."""

    text: str
    """It begins with the place in the recipe."""
    is_problem: bool = True
    """Whether it can't work so; otherwise it is only said."""


@dataclass(frozen=True)
class Needs:
    """What one worker of a stage wants from its node."""

    memory_gib: float
    """Without the processes that decode images."""
    gpu: bool = False
    decoders: int | None = 0
    """Processes that decode images; None: one per core, or as many as `compute.decoders` says."""

    def gib(self, cores: int) -> float:
        """Return the memory of a worker with so many cores, in GiB."""
        return self.memory_gib + (cores if self.decoders is None else self.decoders) * DECODER_GIB


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
    beside: BinaryIO | None = None
    """The open parquet beside the tar, where there is one."""
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
    kinds: ClassVar[tuple[type[Options], ...]] = ()
    """The kinds of column that a recipe can ask for; empty for a column that comes with every recipe."""
    provides: ClassVar[str] = ""
    """What other columns read from it, by its role there, where it comes with every recipe: `index`, `embedding`, or
    `cosine`, which rules read as a text's score."""
    version: ClassVar[int]
    """Part of the column's hash: raise it when the code would write other values."""
    batch_size: ClassVar[int] = 256
    rates: ClassVar[Mapping[str, Rate]] = MappingProxyType({})
    """Stated rates by the model that the options name."""
    sample_bytes: ClassVar[int] = 30
    """Bytes of a sample's value in storage, for the plan."""
    geometry: Geometry | None = None
    """Set by setup() where the stage reads `image`."""

    def __init__(self, spec: ColumnSpec) -> None:
        self.spec = spec

    @classmethod
    def make_spec(cls, options: Options, where: str, inputs: Mapping[str, ColumnSpec]) -> ColumnSpec:
        """Return the column that these options ask for: its hash covers them and the content of what they name.

        Args:
            where: place of the options in the recipe, for messages.
            inputs: by role; `index` and the columns that this kind reads.

        Raises:
            PermanentError: a file or folder that is named is not there.
        """
        params = {"kind": options.kind, "options": said(options, "text"), "content": cls.fingerprints(options, where)}
        return ColumnSpec(cls.name, cls.label(options), cls.version, params, inputs)

    @classmethod
    def label(cls, options: Options) -> str:
        """Return the readable start of a column's name, after the stage: the kind, and what is named in the options."""
        named = [readable(value) for value in _outside(options).values()]
        return "-".join(named if named and options.kind == cls.name else [options.kind.lower(), *named])

    @classmethod
    def fingerprints(cls, options: Model, where: str) -> dict[str, str]:
        """Return the content of the files and models that the options name, by key."""
        revision = getattr(options, "revision", None)
        return {
            key: model_fingerprint(value, revision, f"{where}.{key}")
            if what == "model"
            else path_fingerprint(value, f"{where}.{key}")
            for (key, what), value in _outside(options).items()
        }

    @classmethod
    def check(cls, options: Model, where: str) -> Iterator[Finding]:
        """Yield what a plan says of the options, whose content isn't looked at: whether what they name is there."""
        for (key, what), value in _outside(options).items():
            if what == "path" and (said := absence(value)):
                yield Finding(f"{where}.{key}: {said}")

    def here(self, key: str, named: str) -> str:
        """Return what an option names as a library loads it: of an address the path of its copy on this machine."""
        return fetched(named, self.spec.params["content"].get(key))

    def commit(self, key: str = "model") -> str | None:
        """Return the commit of the hub's model that an option names, as it was when the run was planned."""
        return commit_in(self.spec.params["content"].get(key, ""))

    @classmethod
    def rate(cls, spec: ColumnSpec) -> Rate | None:
        """Return how fast the column is computed; None where no rate is stated."""
        if not cls.needs.gpu:
            return FREE
        return cls.rates.get(spec.params["options"].get("model", ""))

    @classmethod
    def pace(cls, spec: ColumnSpec) -> str:
        """Name what takes as long per sample: a rate measured for one such column is expected of the others."""
        model = spec.params.get("options", {}).get("model")
        return f"{cls.name}.{readable(model) if model else spec.label}"

    @classmethod
    def bytes_per_sample(cls, spec: ColumnSpec) -> int:
        """Return the bytes of a sample's value in storage, for the plan."""
        return cls.sample_bytes

    @cached_property
    def options(self) -> Any:
        """The options of the column's kind, as the recipe gave them."""
        [kind] = (kind for kind in self.kinds if kind.kind == self.spec.params["kind"])
        return kind.model_validate(self.spec.params["options"], by_alias=True, by_name=False)

    def setup(self, uids: Samples) -> None:
        """Load models, once before the first batch; `uids` lists all samples of the task, for joins."""

    @abstractmethod
    def process(self, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """Return one value per row for every declared field, None as null; `error` may hold a reason per row."""


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
        """Make the step; `part` says which one, where a run has several: what follows the colon of `download:2`."""
        self.part = part
        self.progress: Callable[[int, int], None] = lambda samples, units: None

    @classmethod
    def check(cls, spec: Spec) -> Iterator[Finding]:
        """Yield what a plan says of what the recipe asks of this step."""
        return iter(())

    @abstractmethod
    def run(self, run: Run) -> None:
        """Do what is missing. Running it again does nothing twice and gives the same bytes."""

    def count_tasks(self, run: Run) -> int:
        """Return how many tasks a divisible step has in this run: a Job starts as many indexes."""
        return run.tasks

    def unfinished(self, run: Run, done: bool) -> Sequence[int]:
        """Return the tasks that a Job is to do; `done` says whether the step was finished once, by the run's status.

        By default all, or none: what is missing of a step that was done is little, and `run` finds it.
        """
        return () if done else range(self.count_tasks(run))

    def count_units(self, run: Run, task: int | None) -> int:
        """Return how many units a task has, or all tasks together."""
        return 0

    def outcome(self, run: Run) -> dict[str, Any]:
        """Return what status.json shall say of the step besides its time: `samples`, `failures` by reason or others."""
        return {}

    def recorded(self, run: Run) -> tuple[float, float] | None:
        """Return the seconds that its workers took for what is there, all added up, and how many samples (or whatever
        the step counts) they did; None where the step doesn't record it."""
        return None

    def run_task(self, run: Run, task: int, tasks: int) -> None:
        """Do what is missing of part `task` of `tasks`; `run` afterwards gives the same bytes as `run` alone."""
        raise PermanentError(f"stage {self.name}: has no tasks, it works on the whole run; leave --task out")


def _outside(options: Model) -> dict[tuple[str, str], str]:
    """Return by (key, `path` or `model`) what the options name that lies outside the storage."""
    found: dict[tuple[str, str], str] = {}
    for name, declared in type(options).model_fields.items():
        value, what = getattr(options, name), outside_of(declared)
        if what and value is not None:
            found[declared.alias or name, what] = value
    return found


def readable(name: str) -> str:
    """Return the last part of a path or of a hub's name, fit for a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.rstrip("/").rpartition("/")[2].lower()).strip("-.")

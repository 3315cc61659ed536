"""The part of a recipe that decides no result: how the work is cut, and which nodes of a cluster do it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.recipe.types import Count, LabelKey, LabelValue, Model, Name, Nulls, Text, Whole, worded

Quantity = Annotated[  # Kubernetes', in part
    str,
    worded(
        r"^[0-9]{1,12}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        18,
        "a number, and right behind it nothing, m (thousandths), k, M, G, T, Ki, Mi, Gi or Ti: 4, 500m or 16Gi",
    ),
]
PARALLELISM = 8  # pods at a time, where a recipe doesn't say
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=16), Nulls]


class Accelerator(Model):
    """The device that a node has for models."""

    resource: Annotated[
        str,
        worded(r"^[a-z0-9.-]{1,253}/[A-Za-z0-9._-]{1,63}$", 317, "a domain, / and a name, such as nvidia.com/gpu"),
    ] = "nvidia.com/gpu"
    """Kubernetes' name of the device."""
    count: Annotated[int, Field(ge=0, le=64), Whole] = 1
    """Devices of one pod; a column's worker uses one. 0: the nodes have none, and run the models on their cores."""


class Toleration(Model):
    """Kubernetes' toleration."""

    key: Text | None = None
    """Left out, with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Left out: every effect."""

    @model_validator(mode="after")
    def _exists(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists has no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key")
        return self


class NodePool(Model):
    """Nodes of a cluster that take a share of every stage: GPU stages where it has `accelerator`, else the others."""

    name: Name
    """Name of the pool, for `compute.train.pool` and in the Jobs' names."""
    node_selector: Labels = {}
    """Labels of its nodes."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints of its nodes; those of an accelerator and of the clouds' spot nodes are tolerated anyway."""
    accelerator: Accelerator | None = None
    """Left out: the pool takes no GPU stage."""
    parallelism: Annotated[int, Field(ge=1, le=10_000), Whole] = PARALLELISM
    """How many pods work at a time."""
    spot: bool = False
    """Nodes that the cloud may take back at any time; that costs no retry."""
    share: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Share of the work, relative to the other pools of its kind."""
    cpu: Quantity | None = None
    """Cores that a pod asks for; without a GPU, a model runs on as many threads. Left out: 4 per GPU, else 1."""
    memory: Quantity | None = None
    """Memory that a pod asks for and may use; left out: what the stage says that it needs. For a training without a
    GPU give it: what a batch takes on the way through the model is in it too."""
    priority_class: Name | None = None
    """A PriorityClass of the cluster."""
    queue: Name | None = None
    """A Kueue LocalQueue of the namespace; left out where there is no Kueue."""
    price: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Price of one GPU for an hour, or of one core where its pods have no GPU; in the currency of your bill, which is
    the same for all pools. It changes no result. Left out: only hours are told."""

    @property
    def device(self) -> str | None:
        """Kubernetes' name of the device that its pods ask for; None where they ask for none."""
        return self.accelerator.resource if self.accelerator and self.accelerator.count else None


class TrainNodes(Model):
    """Nodes of a cluster that train one model together; their number changes no result."""

    nodes: Annotated[int, Field(ge=1, le=1024), Whole] = 1
    """Number of nodes that train one model."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64), Whole] | None = None
    """How many GPUs of a node; left out: the accelerator count of the pool. 0: a training on the nodes' cores."""
    pool: Name | None = None
    """Name of the pool whose nodes train; left out: the first pool that has what is asked for."""
    parallelism: Annotated[int, Field(ge=1, le=200), Whole] = 1
    """How many models train at a time, each on nodes of its own."""


class BatchSizes(Model):
    """Samples per batch, where the stage's own default doesn't fit the GPU."""

    embed: Count | None = None
    """Images."""
    score: Count | None = None
    """Texts."""
    caption: Count | None = None
    """Images."""


class Compute(Model):
    """How the work is cut, and which nodes do it; it changes no result."""

    shards_per_task: Count = 8
    """A task is this many shards: what one pod works through."""
    decoders: Annotated[int, Field(ge=0, le=256), Whole] | None = None
    """Image decoding processes of one worker; left out: one per core; 0 decodes inline."""
    batch_size: BatchSizes = BatchSizes()
    """Samples per batch of a stage, where the stage's own default doesn't fit the GPU."""
    pools: Annotated[list[NodePool], Field(max_length=16)] = []
    """In a cluster: the nodes that work. Stages of a kind (GPU or not) without a pool run on any node that fits."""
    train: TrainNodes = TrainNodes()
    """In a cluster: the nodes that a CLIP is trained on."""
    deadline_hours: Annotated[int, Field(ge=1, le=8760), Whole] = 168
    """In a cluster: hours after which a stage is ended, finished or not; running it again goes on."""

    @property
    def prices(self) -> dict[str, float]:
        """The prices of the pools that have one, by the pool's name."""
        return {pool.name: pool.price for pool in self.pools if pool.price is not None}

    def without_prices(self) -> Compute:
        """Return these nodes without their prices, for what a change of price must not start again."""
        pools = [pool.model_copy(update={"price": None}) for pool in self.pools]
        return self.model_copy(update={"pools": pools}) if pools else self

    def pools_of(self, gpu: bool) -> list[NodePool]:
        """Return the pools that serve GPU stages, or the other pools."""
        return [pool for pool in self.pools if (pool.accelerator is not None) == gpu]

    def training_pools(self) -> list[NodePool]:
        """Return the pools that have what `train.gpusPerNode` asks for; a training takes the first.

        Where it asks for nothing, pools with GPUs come before those whose GPU stages run without one.
        """
        wanted = self.train.gpus_per_node
        if wanted == 0:
            found = [pool for pool in self.pools if not pool.device]
            return sorted(found, key=lambda pool: pool.accelerator is None)
        found = [pool for pool in self.pools_of(gpu=True) if pool.device or wanted is None]
        return sorted(found, key=lambda pool: pool.device is None)

    def workers(self, gpu: bool) -> int:
        """Return how many pods of GPU stages, or of other stages, work at a time."""
        return sum(pool.parallelism for pool in self.pools_of(gpu)) or PARALLELISM

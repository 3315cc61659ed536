"""Which columns and steps of a run belong to which node of the coarse graph: the same nodes whatever the recipe."""

from __future__ import annotations

from components.engine.registry import stages
from components.engine.stage import ColumnStage, Stage
from components.pool.run import Run

COLUMNS = ("index", "embed", "score", "caption", "score-captions")
"""Of columns: without a GPU, by a GPU from images, from embeddings or texts, on demand, and from what is on demand."""
GROUPS = (
    *("ingest", *COLUMNS),
    *("mix", "analyze", "reshard", "train", "evaluate", "report"),
)
"""In an order in which everything can be computed."""
NODES = {
    **{"ingest": ("ingest", "index"), "embed": ("embed", "score"), "caption": ("caption", "score-captions")},
    **{"mix": ("mix", "analyze"), "train": ("reshard", "train", "evaluate"), "report": ("report",)},
}
"""Node of the KFP run → the groups that it works through. A node costs two pods and 40 kB of KFP's Workflow, whose
limit is 1 MB: what follows each other and runs in the same way is one node."""
FANNED_OUT = ("ingest", "index", "embed", "score", "caption", "score-captions", "reshard", "train", "evaluate")
"""Groups whose work runs in pods of their own: `recaption launch GROUP RUN`; the others are steps of one pod."""
STAGE = {"ingest": "download", "score-captions": "score"}
"""Of a group that isn't called as its stage: the stage whose image does its work."""


def needs_gpu(group: str) -> bool:
    """Return whether a group's work is done in the image of the stages with a model."""
    return stages()[STAGE.get(group, group)].needs.gpu


def ingest_of(run: Run) -> list[str]:
    """List the steps that come before a pool's shards are there, in order; none where they were there."""
    if run.ingest is None:
        return []
    rounds = len(run.spec.download.retry) if run.spec.download else 0
    return ["extract", "extract:dedup", "download", *(f"download:{i}" for i in range(1, rounds + 1))]


def groups(run: Run) -> dict[str, list[str]]:
    """Group name → keys of `run.nodes` or names of steps, in an order in which everything can be computed.

    Every run has every group; one that has nothing to do in this recipe is empty.
    """
    found: dict[str, list[str]] = {
        "ingest": ingest_of(run),
        **{group: [key for key, node in run.nodes.items() if node.group == group] for group in COLUMNS},
        **{step: [step] for step in ("mix", "analyze", "reshard", "train", "evaluate", "report")},
    }
    skipped = {"train": run.spec.train is None, "evaluate": run.spec.evaluate is None}
    return {group: [] if skipped.get(group) else keys for group, keys in found.items()}


def group_of(stage: type[ColumnStage], reads: tuple[str, ...], on_demand: bool) -> str:
    """Return the node of the coarse graph that computes a column: after what the column reads."""
    if on_demand:
        return "caption"
    if stage.needs.gpu and "image" in reads:
        return "embed"
    return "score" if stage.needs.gpu or "embedding" in reads else "index"


def place_of(stage: type[Stage]) -> tuple[int, bool, str]:
    """Return what sorts stages in the order in which a run needs them."""
    if not issubclass(stage, ColumnStage):
        return GROUPS.index(stage.name if stage.name in GROUPS else "ingest"), stage.name != "extract", stage.name
    group = group_of(stage, stage.reads, any(kind.on_demand for kind in stage.kinds))
    return GROUPS.index(group), stage.provides != "index", stage.name

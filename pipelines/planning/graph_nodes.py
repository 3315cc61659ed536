"""Which columns and steps of a run belong to which node of the coarse graph: the same nodes whatever the recipe."""

from __future__ import annotations

from components.pool.run import Run

GROUPS = (
    *("ingest", "index", "embed", "score", "caption", "score-captions"),
    *("mix", "analyze", "reshard", "train", "evaluate", "report"),
)
"""In an order in which everything can be computed."""
FANNED_OUT = ("ingest", "index", "embed", "score", "caption", "score-captions", "reshard", "train", "evaluate")
"""Groups whose work runs in pods of their own: `recaption launch GROUP RUN`; the others are steps of one pod."""
STAGE = {"ingest": "download", "score-captions": "score"}
"""Of a group that isn't called as its stage: the stage whose image does its work."""


def ingest_of(run: Run) -> list[str]:
    """The steps that come before a pool's shards are there, in order; none where they were there."""
    if run.ingest is None:
        return []
    rounds = len(run.spec.download.retry) if run.spec.download else 0
    return ["extract", "extract:dedup", "download", *(f"download:{i}" for i in range(1, rounds + 1))]


def groups(run: Run) -> dict[str, list[str]]:
    """Group name → keys of `run.nodes` or names of steps, in an order in which everything can be computed.

    Every run has every group; one that has nothing to do in this recipe is empty.
    """
    captioned = {key.replace("caption:", "score:") for key in run.nodes if key.startswith("caption:")}
    scores = [key for key in run.nodes if key.startswith("score:")]
    screens = [key for key in run.nodes if key.startswith("screen:")]
    return {
        "ingest": ingest_of(run),
        "index": [key for key in run.nodes if key == "index" or key.startswith(("import:", "filter:", "faces:"))],
        "embed": ["embed"],
        "score": [key for key in scores if key not in captioned] + screens,
        "caption": [key for key in run.nodes if key.startswith("caption:")],
        "score-captions": [key for key in scores if key in captioned],
        "mix": ["mix"],
        "analyze": ["analyze"],
        "reshard": ["reshard"],
        "train": ["train"] if run.spec.train else [],
        "evaluate": ["evaluate"] if run.spec.evaluate else [],
        "report": ["report"],
    }

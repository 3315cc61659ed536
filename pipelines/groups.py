"""Which columns and steps of a run belong to which node of the coarse graph: the same nodes whatever the recipe."""

from __future__ import annotations

from components.pool.run import Run

GROUPS = (
    *("index", "embed", "score", "caption", "score-captions"),
    *("mix", "analyze", "reshard", "train", "evaluate", "report"),
)
"""In an order in which everything can be computed."""
FANNED_OUT = ("index", "embed", "score", "caption", "score-captions", "reshard", "train", "evaluate")
"""Groups whose work runs in pods of their own: `recaption launch GROUP RUN`; the others are steps of one pod."""


def groups(run: Run) -> dict[str, list[str]]:
    """Group name → keys of `run.nodes` or names of steps, in an order in which everything can be computed.

    Every run has every group; one that has nothing to do in this recipe is empty.
    """
    captioned = {key.replace("caption:", "score:") for key in run.nodes if key.startswith("caption:")}
    scores = [key for key in run.nodes if key.startswith("score:")]
    screens = [key for key in run.nodes if key.startswith("screen:")]
    return {
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

"""What a plan says of the evaluation sets before a model is trained for them."""

from __future__ import annotations

from collections.abc import Iterator

from components.engine.stage import Finding
from components.recipe.training import Evaluate
from components.stages.evaluate.tasks import gap, nothing_at, tasks_of
from components.storage.opening import open_storage

NAMED = 5  # data sets that a line names


def check_data_sets(evaluate: Evaluate) -> Iterator[Finding]:
    """Yield what is missing. Some of DataComp's data sets may be; one that the recipe names is a mistake."""
    root, tasks = open_storage(evaluate.root), tasks_of(evaluate)
    gaps = {task: reason for task in tasks if (reason := gap(task, root))}
    if not gaps:
        return
    if not any(root.list()):
        yield Finding(nothing_at(evaluate))
        return
    named = ", ".join(task.name for task in list(gaps)[:NAMED]) + (" …" if len(gaps) > NAMED else "")
    mistake = evaluate.tasks != "datacomp" and not all(any(root.list(f"{task.folder}/")) for task in gaps)
    yield Finding(
        f"spec.evaluate: {len(gaps)} of {len(tasks)} data sets can't be evaluated ({named}): "
        f"{next(iter(gaps.values()))}",
        mistake or len(gaps) == len(tasks) > 1,
    )

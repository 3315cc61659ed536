"""Finds what a recipe asks for: a column is computed where a rule, `drop` or a training set looks at it."""

from __future__ import annotations

from dataclasses import dataclass

from components.recipe import recipe as schema
from components.recipe.columns import RAW
from components.selection.rules import columns_of, tested_by


@dataclass(frozen=True)
class Asked:
    """What the mixtures, `drop` and `trainingSets` of a recipe look at."""

    columns: frozenset[str]
    """Names of columns of the recipe's list, those included from whose texts another one is computed."""
    cosines: frozenset[str]
    """Names of the texts, raw among them, whose cosine with the image by the recipe's scorer is looked at."""


def asked_of(spec: schema.Spec) -> Asked:
    """Return what a recipe asks for; whatever else it lists is not computed."""
    texts, scores, flags = columns_of(spec.mixtures)
    more_scores, more_flags = tested_by(spec.drop)
    scores |= more_scores
    asked = texts | scores | flags | more_flags | {*spec.training_sets.blur}
    sources = {column.name: column.options.source_text for column in spec.columns}
    waiting = [*asked]
    while waiting:
        source = sources.get(waiting.pop(), RAW)
        if source not in asked:
            asked.add(source)
            waiting.append(source)
    return Asked(frozenset(asked & sources.keys()), frozenset(scores & {*spec.texts}))


def left_out(spec: schema.Spec) -> list[str]:
    """Return a line for each column, or cosine of a used text, that is not computed because nothing asks for it."""
    asked = asked_of(spec)
    unused = [column.name for column in spec.columns if column.name not in asked.columns]
    used = [name for name in spec.texts if name not in unused]
    return [
        *(f"column {name}: nothing uses it; not computed" for name in unused),
        *(
            f"cosine of {name} with its image: nothing uses it; not computed, so no figure has it"
            for name in used
            if name not in asked.cosines
        ),
    ]

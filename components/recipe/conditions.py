"""Every way in which a recipe can test a sample's score or flag, each declared once.

To add one, add a Comparison to COMPARISONS. The recipe's models and schema, the CRD, the rules, the captioners' demand,
the names of mixtures, the report and the data set's card all read this list; none of them names a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.alias_generators import to_camel

from components.recipe.types import Model, Name, Share

About = Literal["score", "flag"]

SUBJECTS: dict[About, str] = {
    "score": "A column that is a score, or a text: its cosine with the image by the scorer.",
    "flag": "A column that is a flag.",
}
"""What a condition can be about, with the documentation of the key that names the column."""


class RuleThreshold(Model):
    """The threshold of another rule."""

    rule: Name
    """The rule whose `top` condition gives the threshold."""


@dataclass(frozen=True)
class Comparison:
    """One way to test a sample's score or flag against a value that the recipe gives."""

    name: str
    """Name of the field in Python; in the YAML it is camelCase, as `atLeast` of `at_least`."""
    about: About
    type: Any
    """Type of the recipe's value, as a pydantic field takes it."""
    description: str
    """The key's documentation in the schema."""
    holds: Callable[[Any, Any], Any]
    """Decide for many samples at once: from the column's values, (N,) float32 or bool, and the value to compare them
    with, of the same dtype, to (N,) bool. What it says of a sample without a value is not looked at."""
    words: Callable[[str, Any], str]
    """Say the condition to a person, from the column's name and the recipe's value."""
    is_share: bool = False
    """The recipe's value is a share of the pool: scores are compared with the lowest one of the share with the highest
    scores, a threshold that is found beforehand over the whole pool and that other rules can borrow."""
    borrows: bool = False
    """The recipe's value may also be {rule: NAME}: the threshold of that rule."""
    default: Any = None
    """The recipe's value where a condition names its column and nothing else; at most one comparison of scores and one
    of flags has it."""

    @property
    def key(self) -> str:
        """Return the key in the YAML."""
        return to_camel(self.name)


def said(value: float | RuleThreshold) -> str:
    """Write a number, or the threshold of another rule, for a person."""
    return f"the threshold of “{value.rule}”" if isinstance(value, RuleThreshold) else f"{value:g}"


COMPARISONS: list[Comparison] = [
    Comparison(
        "top",
        "score",
        Share,
        "Among the highest share of the whole pool by this score, ties included.",
        lambda scores, threshold: scores >= threshold,
        lambda name, share: f"score {name} is among the pool's top {share * 100:g} %",
        is_share=True,
    ),
    Comparison(
        "at_least",
        "score",
        float,
        "At least this number, or the threshold of another rule of this mixture.",
        lambda scores, number: scores >= number,
        lambda name, number: f"score {name} ≥ {said(number)}",
        borrows=True,
    ),
    Comparison(
        "at_most",
        "score",
        float,
        "At most this number.",
        lambda scores, number: scores <= number,
        lambda name, number: f"score {name} ≤ {said(number)}",
    ),
    Comparison(
        "equals",
        "flag",
        bool,
        "Which value; left out: true.",
        lambda flags, value: flags == value,
        lambda name, value: f"{'' if value else 'not '}{name}",
        default=True,
    ),
]


def comparisons_about(about: About) -> list[Comparison]:
    """List the comparisons of scores, or those of flags."""
    return [c for c in COMPARISONS if c.about == about]


def listed(keys: list[str], last: str = "and") -> str:
    """Write keys as a sentence has them: `a`, `b` and `c`."""
    quoted = [f"`{key}`" for key in keys]
    return f" {last} ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))

"""What a recipe says of mixtures: rules in order, each with a text and the conditions for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from components.recipe.types import Model, Name, Share, by_key


class RuleThreshold(Model):
    """The threshold of another rule."""

    rule: Name
    """The rule whose `top` condition gives the threshold."""


class ScoreCondition(Model):
    """A score that must be high enough."""

    beside = ("flag", "equals")

    score: Name
    """A text (its cosine with the image by the scorer), an imported score or a screen."""
    top: Share | None = None
    """Among the best share of the whole pool by this score, ties included."""
    at_least: (
        Annotated[
            Annotated[float, Tag("<number>")] | Annotated[RuleThreshold, Tag("<RuleThreshold>")],
            by_key("a number or {rule: NAME}", "<number>", rule="<RuleThreshold>"),
        ]
        | None
    ) = None
    """At least this number, or the threshold of another rule of this mixture."""
    at_most: float | None = None
    """At most this number, as of a screen."""

    @model_validator(mode="after")
    def _one(self) -> ScoreCondition:
        if [self.top, self.at_least, self.at_most].count(None) != 2:
            raise ValueError("give exactly one of `top`, `atLeast` and `atMost`")
        return self

    @model_serializer(mode="wrap")
    def _as_named(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without an `atMost` that is not there: mixtures were named by their conditions before there was one."""
        written: dict[str, Any] = handler(self)
        return {k: v for k, v in written.items() if v is not None or k not in ("at_most", "atMost")}


class FlagCondition(Model):
    """A flag that must have a value."""

    beside = ("score", "top", "atLeast", "atMost")

    flag: Name
    """An imported flag or a filter."""
    equals: bool = True
    """Which value."""


Condition = Annotated[
    Annotated[ScoreCondition, Tag("<ScoreCondition>")] | Annotated[FlagCondition, Tag("<FlagCondition>")],
    by_key("{score: …} or {flag: …}", score="<ScoreCondition>", flag="<FlagCondition>"),
]


class Concat(Model):
    """Several texts as one."""

    beside = ("bestOf",)

    concat: Annotated[list[Name], Field(min_length=2, max_length=8)]
    """Texts joined by a space, in this order."""


class BestOf(Model):
    """Per image one of several texts."""

    beside = ("concat",)

    best_of: Annotated[list[Name], Field(min_length=2, max_length=64)]
    """Per image the text with the highest cosine; the first of equals."""


class Rule(Model):
    """Which images get which text."""

    name: Name | None = None
    """By which other rules of the mixture use its threshold."""
    text: Annotated[
        Annotated[Name, Tag("<name>")] | Annotated[Concat, Tag("<Concat>")] | Annotated[BestOf, Tag("<BestOf>")],
        by_key("a text, {concat: [A, B]} or {bestOf: [A, B]}", "<name>", concat="<Concat>", best_of="<BestOf>"),
    ]
    """What an image gets that matches: `raw`, a captioner, an imported text, or a combination."""
    where: Annotated[list[Condition], Field(max_length=16)] = []
    """All must hold; a sample without the score or flag never matches. Empty matches every image with that text."""


class Mixture(Model):
    """Rules in order, which pick the text of each image or drop the image."""

    name: Name
    """In the names of its training set, model and results."""
    emit: Literal["first", "all"] = "first"
    """first: the first rule that matches an image gives its text; all: every match is a pair of its own."""
    rules: Annotated[list[Rule], Field(min_length=1, max_length=64)]
    """In order; an image that none matches is dropped."""


def texts_of(rule: Rule) -> list[str]:
    """The plain texts a rule's text is made of."""
    if isinstance(rule.text, Concat):
        return rule.text.concat
    return rule.text.best_of if isinstance(rule.text, BestOf) else [rule.text]


def top_of(rule: Rule) -> ScoreCondition | None:
    """The rule's first `top` condition: the threshold it lends to others."""
    return next((c for c in rule.where if isinstance(c, ScoreCondition) and c.top is not None), None)

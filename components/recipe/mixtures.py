"""The models of a recipe's mixtures: rules in order, each with a text and conditions, and how they are written out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, create_model, model_validator

from components.base.hashing import content_hash, said
from components.recipe.conditions import (
    SUBJECTS,
    About,
    Comparison,
    RuleThreshold,
    comparisons_about,
    listed,
)
from components.recipe.types import Model, Name, by_key


class Condition(Model):
    """One test of a sample's score or flag; a sample without that score or flag never meets it.

    ScoreCondition and FlagCondition have a key for each comparison, of which a condition gives exactly one.
    """

    about: ClassVar[About]

    @model_validator(mode="before")
    @classmethod
    def _default(cls, value: Any) -> Any:
        """Fill in the comparison that is meant where none is named."""
        mine = comparisons_about(cls.about)
        default = next((c for c in mine if c.default is not None), None)
        if not isinstance(value, dict) or default is None:
            return value
        named = any(value.get(key) is not None for c in mine for key in (c.key, c.name))
        return value if named else {**value, default.key: default.default}

    @model_validator(mode="after")
    def _one(self) -> Condition:
        mine = comparisons_about(self.about)
        if len([c for c in mine if getattr(self, c.name) is not None]) != 1:
            raise ValueError(f"give exactly one of {listed([c.key for c in mine])}")
        return self

    @property
    def name(self) -> str:
        """Return the name of the column that the condition looks at."""
        name: str = getattr(self, self.about)
        return name

    @property
    def comparison(self) -> Comparison:
        """Return the comparison that the condition makes."""
        return next(c for c in comparisons_about(self.about) if getattr(self, c.name) is not None)

    @property
    def value(self) -> Any:
        """Return the value that the condition compares with, as the recipe gives it."""
        return getattr(self, self.comparison.name)

    @property
    def lender(self) -> str | None:
        """Return the name of the rule whose threshold the condition borrows; None where it has a value of its own."""
        return self.value.rule if isinstance(self.value, RuleThreshold) else None

    @property
    def share(self) -> float | None:
        """Return the share whose threshold the condition needs and lends; None where it compares with its own value."""
        return self.value if self.comparison.is_share else None

    def in_words(self) -> str:
        """Say the condition to a person."""
        return self.comparison.words(self.name, self.value)


NUMBER_OR_RULE = by_key("a number or {rule: NAME}", "<number>", rule="<RuleThreshold>")


def _type_of(comparison: Comparison) -> Any:
    if not comparison.borrows:
        return comparison.type
    number, rule = Annotated[comparison.type, Tag("<number>")], Annotated[RuleThreshold, Tag("<RuleThreshold>")]
    return Annotated[number | rule, NUMBER_OR_RULE]


def _condition_on(about: About) -> type[Condition]:
    """Make the model of the conditions on a score, or of those on a flag."""
    fields: dict[str, Any] = {about: (Name, Field(description=SUBJECTS[about]))}
    for comparison in comparisons_about(about):
        optional = _type_of(comparison) | None
        fields[comparison.name] = (optional, Field(default=None, description=comparison.description))
    made = create_model(f"{about.capitalize()}Condition", __base__=Condition, __module__=__name__, **fields)
    made.about = about
    made.beside = tuple(key for other in SUBJECTS if other != about for key in keys_of(other))
    return made


def keys_of(about: About) -> list[str]:
    """List the keys of the conditions on a score, or of those on a flag."""
    return [about, *(c.key for c in comparisons_about(about))]


ScoreCondition, FlagCondition = _condition_on("score"), _condition_on("flag")

if TYPE_CHECKING:
    AnyCondition = Condition
else:
    AnyCondition = Annotated[
        Annotated[ScoreCondition, Tag("<ScoreCondition>")] | Annotated[FlagCondition, Tag("<FlagCondition>")],
        by_key("{score: …} or {flag: …}", score="<ScoreCondition>", flag="<FlagCondition>"),
    ]


class Concat(Model):
    """Several texts as one."""

    beside = ("bestOf",)

    concat: Annotated[list[Name], Field(min_length=2, max_length=8)]
    """Texts joined by a space, in this order."""


class BestOf(Model):
    """One of several texts, chosen for each image."""

    beside = ("concat",)

    best_of: Annotated[list[Name], Field(min_length=2, max_length=64)]
    """Each image gets the text with the highest cosine; the first of equals."""


class Rule(Model):
    """A text, and the conditions on which an image gets it."""

    name: Name | None = None
    """Name by which other rules of the mixture use its threshold."""
    text: Annotated[
        Annotated[Name, Tag("<name>")] | Annotated[Concat, Tag("<Concat>")] | Annotated[BestOf, Tag("<BestOf>")],
        by_key("a text, {concat: [A, B]} or {bestOf: [A, B]}", "<name>", concat="<Concat>", best_of="<BestOf>"),
    ]
    """The text of an image that matches: `raw`, a column that is a text, or a combination."""
    where: Annotated[list[AnyCondition], Field(max_length=16)] = []
    """All must hold; a sample without the score or flag never matches. Empty matches every image with that text."""


class Mixture(Model):
    """Rules in order, which pick the text of each image or drop the image."""

    name: Name
    """Name of the mixture, which is also in the names of its training set, model and results."""
    emit: Literal["first", "all"] = "first"
    """first: the first rule that matches an image gives its text; all: every match is a pair of its own."""
    rules: Annotated[list[Rule], Field(min_length=1, max_length=64)]
    """Rules, tried in this order; an image that none matches is dropped."""


class TrainingSets(Model):
    """How the training sets are written out."""

    blur: Annotated[list[Name], Field(max_length=16)] = []
    """Columns with boxes, such as faces: every image is blurred inside them. A sample whose boxes are not
    known is left out of every mixture."""


def texts_of(rule: Rule) -> list[str]:
    """List the plain texts that a rule's text is made of."""
    if isinstance(rule.text, Concat):
        return rule.text.concat
    return rule.text.best_of if isinstance(rule.text, BestOf) else [rule.text]


def choice_of(mixture: Mixture) -> dict[str, Any]:
    """Return what decides a mixture's choice: what it says, whatever the mixture and its rules are called."""
    numbers = {rule.name: number for number, rule in enumerate(mixture.rules)}
    choice = said(mixture, "name")
    for rule in choice["rules"]:
        rule.pop("name", None)
        for condition in rule.get("where", ()):
            condition |= {
                key: {"rule": numbers[value["rule"]]} for key, value in condition.items() if isinstance(value, dict)
            }
    return choice


def firsts_of(mixtures: Iterable[Mixture]) -> dict[str, Mixture]:
    """Return, by a hash of their choice, the mixtures without those that choose the same as one before them."""
    found: dict[str, Mixture] = {}
    for mixture in mixtures:
        found.setdefault(content_hash(choice_of(mixture)), mixture)
    return found


def lent_by(rule: Rule) -> Condition | None:
    """Return the rule's first `top` condition, whose threshold the rule lends to others; None where it has none."""
    return next((c for c in rule.where if c.share is not None), None)


def in_words(rule: Rule) -> str:
    """Say a rule to a person."""
    if isinstance(rule.text, Concat):
        text = " + ".join(rule.text.concat)
    else:
        text = f"best of {', '.join(rule.text.best_of)}" if isinstance(rule.text, BestOf) else rule.text
    conditions = " and ".join(c.in_words() for c in rule.where)
    return f"{text}, where {conditions}" if conditions else f"{text}, wherever there is one"

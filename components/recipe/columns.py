"""The columns of a recipe: one list, of which each entry has a name and the options of exactly one kind.

A stage declares its kinds: a subclass of Options for each, in the stage's own module. Nothing here names a kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, create_model, model_validator
from pydantic_core import CoreSchema

from components.base.errors import PermanentError
from components.base.plugins import stage_modules
from components.recipe.scorer import Scorer
from components.recipe.types import Model, Name

RAW = "raw"  # the text that came with the image

DEFERRED = ConfigDict(defer_build=True)
"""For a model with columns in it, which can be built only when every stage has been imported."""

Role = Literal["text", "score", "flag", "boxes"]
"""What a column's value is to a rule, or to what is written out; also the name of the field that holds the value."""


class Options(Model):
    """Base of a kind's options. The class's docstring and those of its keys are the user's documentation.

    An option `text` names the text that the column is computed from: it is no part of the column's hash, as the text's
    own column is. An option `revision` says which version of a hub's model is meant.
    """

    kind: ClassVar[str]
    """The key of these options in a recipe's entry."""
    roles: ClassVar[tuple[Role, ...]]
    """What a column of this kind can be; all of it, unless `roles_here` says otherwise."""
    reads: ClassVar[tuple[str, ...]] = ()
    """What the stage reads for this kind, where its kinds read different things; empty: all of the stage's `reads`."""
    on_demand: ClassVar[bool] = False
    """Whether it is computed only for the samples that some rule of the recipe can still use."""
    checks: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(CEL rule, message): what the model's validators check, for a cluster's API server."""

    @property
    def roles_here(self) -> tuple[Role, ...]:
        """Return what this column is, where that depends on the options."""
        return type(self).roles

    @property
    def scorer(self) -> Scorer | None:
        """Return the CLIP whose embeddings the column is computed from, where it is not the recipe's scorer."""
        return None

    @property
    def source_text(self) -> str:
        """Return the name of the text that the column is computed from, where the stage reads a text."""
        return getattr(self, "text", RAW)


class Column(Model):
    """A value for every sample: a name, and one key that says which kind of column it is."""

    model_config = DEFERRED

    name: Name
    """By which rules use the column."""

    @property
    def kind(self) -> str:
        return self.options.kind

    @property
    def options(self) -> Options:
        given = (getattr(self, kind) for kind in kinds())
        found: Options = next(options for options in given if options is not None)
        return found

    @property
    def roles(self) -> tuple[Role, ...]:
        return self.options.roles_here

    @model_validator(mode="after")
    def _one_kind(self) -> Column:
        given = [kind for kind in kinds() if getattr(self, kind, None) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected one key that says what it is, found {found}; give one of {', '.join(kinds())}")
        return self

    @model_validator(mode="after")
    def _not_raw(self) -> Column:
        if self.name == RAW:
            raise ValueError(f"name: {RAW} is taken by the text that came with the image; give another name")
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source) if cls is not Column else handler.generate_schema(column_model())


@cache
def kinds() -> Mapping[str, type[Options]]:
    """Return the options of every kind of column by its key.

    Raises:
        PermanentError: two stages declare a kind of one name.
    """
    found: dict[str, type[Options]] = {}
    for module in stage_modules(Options.__name__):
        for declared in kinds_in(vars(module)):
            if declared.kind in found:
                raise PermanentError(
                    f"{module.__name__}: kind {declared.kind} is {found[declared.kind].__module__}'s already"
                )
            found[declared.kind] = declared
    return dict(sorted(found.items()))


def kinds_in(names: Mapping[str, Any]) -> list[type[Options]]:
    """Return the kinds that a module declares, given its names."""
    return [
        value
        for value in names.values()
        if isinstance(value, type)
        and issubclass(value, Options)
        and value.__module__ == names["__name__"]
        and hasattr(value, "kind")
    ]


@cache
def column_model() -> type[Column]:
    """Return the model of an entry: a key for every kind. Built when first needed: a stage imports recipes."""
    fields: dict[str, Any] = {
        kind: (
            Annotated[options | None, Field(alias=kind, description=" ".join((options.__doc__ or "").split()))],
            None,
        )
        for kind, options in kinds().items()
    }
    made: type[Column] = create_model("Column", __base__=Column, __doc__=Column.__doc__, **fields)
    return made

"""What the models of a recipe are made of: their base, the types of their values, and unions told apart by a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from components.base.addresses import parse_address

LONGEST_NAME = 63  # characters: a Kubernetes label's value


class Model(BaseModel):
    """Base of all parts of a recipe: camelCase keys, unknown keys refused, nothing converted, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    beside: ClassVar[tuple[str, ...]] = ()
    """Keys of a union's other members: under them, too, a null is nothing."""

    @model_validator(mode="before")
    @classmethod
    def _nulls(cls, value: Any) -> Any:
        """Leave out keys that are null, as Kubernetes' API server does; an unknown key stays, to be refused."""
        if not isinstance(value, dict):
            return value
        known = {*cls.beside, *cls.model_fields, *(field.alias for field in cls.model_fields.values())}
        return {k: v for k, v in value.items() if v is not None or k not in known}


@dataclass(frozen=True)
class Outside:
    """Marks a text that names something outside the storage, whose content is part of the hash of what it makes."""

    what: Literal["path", "model"]


WORDS: dict[str, str] = {}
"""What a text must be, in words, by its regular expression: messages say this instead of the expression."""


def worded(pattern: str, max_length: int, expected: str) -> Any:
    """Return the Field of a text that must match a regular expression, which messages explain in these words."""
    WORDS[pattern] = expected
    return Field(pattern=pattern, max_length=max_length)


def _without_nulls(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _whole(value: Any) -> Any:
    """Turn 50.0 into 50: kubectl writes it so, and KFP's integers travel as doubles."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _address(value: str) -> str:
    parse_address(value)
    return value


Name = Annotated[
    str,
    worded(
        r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
        LONGEST_NAME,
        "small letters a-z, digits, - and . with a letter or digit at both ends",
    ),
]
ObjectName = Annotated[  # Kubernetes': a DNS subdomain; it may have 253, but a run's name goes into labels
    str,
    worded(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        LONGEST_NAME,
        "small letters a-z, digits, - and . with a letter or digit at both ends and on both sides of each .",
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
LocalPath = Annotated[Text, Outside("path")]
"""A file or folder of the machine that computes, or its gs:// or s3:// address."""
ModelName = Annotated[Text, Outside("model")]
"""A folder or file, its gs:// or s3:// address, or the name of a model of a hub; a key `revision` beside it
says which one of the hub's."""
Address = Annotated[Text, AfterValidator(_address)]
Share = Annotated[float, Field(gt=0, le=1)]
Whole = BeforeValidator(_whole)
"""For an int; after its Field."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1), Whole]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Whole]  # what numpy takes
LabelKey = Annotated[
    str,
    worded(
        r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
        317,
        "a label's key: at most 63 letters, digits, ., _ and - with a letter or digit at both ends; a domain and / may "
        "come before",
    ),
]
LabelValue = Annotated[
    str,
    worded(
        r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$",
        63,
        "a label's value: letters, digits, ., _ and - with a letter or digit at both ends",
    ),
]
Nulls = BeforeValidator(_without_nulls)
"""For a map: a null is a key left out."""


def marks_of(declared: FieldInfo) -> tuple[object, ...]:
    """Return what a key's type is marked with, also where a null is allowed beside it."""
    return (*declared.metadata, *_marks_in(declared.annotation))


def _marks_in(annotation: Any) -> tuple[object, ...]:
    """Return the marks of the members of an annotation like `LocalPath | None`."""
    inner = getattr(annotation, "__args__", ())
    return (*getattr(annotation, "__metadata__", ()), *(mark for member in inner for mark in _marks_in(member)))


def is_address(declared: FieldInfo) -> bool:
    """Return whether a key holds the address of a storage."""
    return any(isinstance(mark, AfterValidator) and mark.func is _address for mark in marks_of(declared))


def outside_of(declared: FieldInfo) -> Literal["path", "model"] | None:
    """Return what a key names that lies outside the storage; None where it names nothing such."""
    return next((mark.what for mark in marks_of(declared) if isinstance(mark, Outside)), None)


def by_key(expected: str, plain: str | None = None, **models: str) -> Discriminator:
    """Choose a union's member by the key that only it has, so that one mistake gives one message.

    Args:
        expected: What the message says when it is none of them.
        plain: Tag of the member that is no mapping; None where all are.
        models: Tag of a member, by its key's name in Python.
    """

    def choose(value: Any) -> str | None:
        if not isinstance(value, (dict, BaseModel)):
            return plain
        keys = {k for k, v in value.items() if v is not None} if isinstance(value, dict) else type(value).model_fields
        return next((tag for key, tag in models.items() if key in keys or to_camel(key) in keys), None)

    return Discriminator(choose, custom_error_type="choice", custom_error_message=f"expected {expected}")

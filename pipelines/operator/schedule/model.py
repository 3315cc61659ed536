"""The models of a RecaptionSchedule: when, for which dumps, and the recipe in which {dump} stands."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from components.recipe.recipe import Metadata, Spec, problems_of
from components.recipe.sources import INDEX, CommonCrawl, Pool
from components.recipe.types import (
    LONGEST_NAME,
    Address,
    LabelKey,
    LabelValue,
    Model,
    Nulls,
    Text,
    Whole,
    worded,
)

PoolName = Annotated[  # a Name in which {dump}, which becomes 15 characters, may stand once
    str,
    worded(
        r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?|([a-z0-9][a-z0-9.-]*)?\{dump\}([a-z0-9.-]*[a-z0-9])?)$",
        54,
        "small letters a-z, digits, - and . with a letter or digit at both ends, and {dump} once among them",
    ),
]
LONGEST_SCHEDULE = LONGEST_NAME - len("-CC-MAIN-2026-43")  # its Recaptions are called NAME-cc-main-2026-43
Seconds = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]
Limit = Annotated[int, Field(ge=0, le=1000), Whole]


class TemplateCommonCrawl(CommonCrawl):
    """The dump itself, or a sample of it."""

    dump: Literal["{dump}"]
    """Must be {dump}: each run has its own."""


class TemplatePool(Pool):
    """The candidate image-text pairs of one dump."""

    name: PoolName
    """Name of a dump's pool, under which its columns are kept; {dump} is the dump in lower case: cc-main-2026-43."""
    shards: Address | None = None
    """Folder of a dump's webdataset tars; {dump} is the dump, such as CC-MAIN-2026-43."""
    urls: Address | None = None
    """Instead of shards: the dump's tables with the fields url and text, whose images are downloaded first."""
    common_crawl: TemplateCommonCrawl | None = None
    """Instead of shards: the dump itself, whose images with a text are downloaded first."""


class TemplateSpec(Spec):
    """A recipe in which {dump} stands."""

    pool: TemplatePool
    """The candidate image-text pairs of one dump."""


Annotations = Annotated[dict[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=64), Nulls]


class TemplateMetadata(Model):
    """Labels and annotations of each Recaption."""

    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=64), Nulls] | None = None
    annotations: Annotations | None = None


class Template(Model):
    """The Recaption of each dump."""

    metadata: TemplateMetadata | None = None
    """Labels and annotations of each Recaption."""
    spec: TemplateSpec
    """The recipe: `{dump}` stands in pool.name, and in pool.shards, pool.urls or pool.commonCrawl.dump."""


class ScheduleSpec(Model):
    """When to start which dumps, and the recipe for them."""

    schedule: Annotated[
        str,
        worded(
            r"^\s*[0-9A-Za-z*/,#-]+(\s+[0-9A-Za-z*/,#-]+){4}\s*$",
            256,
            "minute, hour, day of the month, month and day of the week, such as 0 6 * * *",
        ),
    ]
    """Cron expression: minute, hour, day of the month, month, day of the week, e.g. `0 6 * * *`. One start makes up for
    all times that were missed."""
    time_zone: Annotated[str, worded(r"^[A-Za-z0-9_+/-]+$", 64, "an IANA name such as Europe/Zurich")] = "Etc/UTC"
    """Time zone of `schedule`: an IANA name such as Europe/Zurich."""
    dumps: Annotated[
        str, worded(r"^(new|since CC-MAIN-[0-9]{4}-[0-9]{2})$", 21, "new, or since and an id: since CC-MAIN-2026-05")
    ] = "new"
    """Wanted dumps. `new`: the newest. `since CC-MAIN-2026-05`: it and all newer ones, newest first, one each time."""
    index: Text = INDEX
    """List of the dumps: base address of Common Crawl's collinfo.json, or a folder with it."""
    concurrency_policy: Literal["Forbid", "Allow", "Replace"] = "Forbid"
    """What to do while an earlier dump runs. Forbid: wait for it; Allow: run both; Replace: end the earlier one."""
    suspend: bool = False
    """Start no further dump; what runs goes on."""
    starting_deadline_seconds: Seconds | None = None
    """Seconds after which a missed time is given up; left out: never."""
    successful_history_limit: Limit = 3
    """How many Recaptions that succeeded are kept."""
    failed_history_limit: Limit = 3
    """How many Recaptions that failed are kept."""
    template: Template
    """The Recaption of each dump."""


class RecaptionSchedule(Model):
    api_version: Literal["recaption.dev/v1alpha1"]
    kind: Literal["RecaptionSchedule"]
    metadata: Metadata
    spec: ScheduleSpec
    status: Annotated[Any, Field(exclude=True)] = None

    @model_validator(mode="after")
    def _names(self) -> RecaptionSchedule:
        problems = problems_of(self.spec.template.spec, "spec.template.spec")
        if problems:
            raise ValueError("\n".join(problems))
        return self

"""The recipe: what a user asks for, as one pydantic model that every door reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from components.base.errors import PermanentError
from components.recipe.columns import DEFERRED, RAW, Column, Role
from components.recipe.compute import Compute
from components.recipe.conditions import COMPARISONS, About, listed
from components.recipe.mixtures import AnyCondition, Mixture, TrainingSets, lent_by, texts_of
from components.recipe.scorer import Scorer
from components.recipe.sources import Download, Pool
from components.recipe.training import Evaluate, Train
from components.recipe.types import Address, Model, Nulls, ObjectName
from components.recipe.yaml_io import check, dump_yaml, meant, read_file, read_yaml


class Spec(Model):
    """What is asked for."""

    model_config = DEFERRED

    storage: Address
    """Folder, gs:// or s3:// prefix where everything that is computed goes."""
    pool: Pool
    """The candidate image-text pairs."""
    scorer: Scorer = Scorer()
    """The CLIP whose cosines are the scores; the default is the paper's and DataComp's."""
    columns: Annotated[list[Column], Field(max_length=128)] = []
    """What is known of every sample: captions, imported columns, filters, screens, further scores."""
    drop: Annotated[list[AnyCondition], Field(max_length=16)] = []
    """A sample that meets one of these conditions is in no mixture and gets no caption. A sample without the score or
    flag meets none and stays. Scores and flags are those that are there before captions."""
    mixtures: Annotated[list[Mixture], Field(min_length=1, max_length=200)]
    """The training sets to make: each picks a text per image, or drops the image."""
    training_sets: TrainingSets = TrainingSets()
    """How the training sets are written out."""
    train: Train | None = None
    """Train a CLIP on each mixture; left out: the training sets are the end."""
    evaluate: Evaluate | None = None
    """Evaluate each trained CLIP zero-shot; needs `train`."""
    download: Download | None = None
    """How images are fetched, of a pool with `urls` or `commonCrawl`; left out: politely, by defaults."""
    compute: Compute = Compute()
    """How the work is cut, and which nodes do it; it changes no result."""
    suspend: bool = False
    """In a cluster: don't start the run, or stop it; what is computed stays and false goes on. It changes no result."""

    @property
    def texts(self) -> list[str]:
        """Names that a rule may use as a text."""
        return [RAW, *self.names("text")]

    @property
    def scores(self) -> list[str]:
        """Names that a condition may use as a score; of a text it is the cosine with the image by the scorer."""
        return [*self.texts, *self.names("score")]

    @property
    def flags(self) -> list[str]:
        """Names that a condition may use as a flag."""
        return self.names("flag")

    @property
    def on_demand(self) -> list[str]:
        """Names of the columns that are computed only for the samples that some rule can still use."""
        return [column.name for column in self.columns if column.options.on_demand]

    def names(self, role: Role) -> list[str]:
        """Return the names of the recipe's columns that are of this use to a rule."""
        return [column.name for column in self.columns if role in column.roles]

    @property
    def boxes(self) -> list[str]:
        """Names of the columns with boxes, inside which images can be blurred."""
        return self.names("boxes")

    @property
    def early(self) -> list[str]:
        """Names of the texts, scores and flags that are there before captions."""
        late = {*self.on_demand}
        return [name for name in (*self.scores, *self.flags) if name not in late]


OBJECT_META = (  # the keys of Kubernetes' ObjectMeta: those that it writes into an object itself, too
    "annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName",
    "generation", "labels", "managedFields", "name", "namespace", "ownerReferences", "resourceVersion", "selfLink",
    "uid",
)  # fmt: skip


class Metadata(BaseModel):
    """Kubernetes' object metadata: only the name matters here."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: ObjectName
    labels: Annotated[dict[str, str], Nulls] | None = None
    annotations: Annotated[dict[str, str], Nulls] | None = None

    @model_validator(mode="after")
    def _known(self) -> Metadata:
        unknown = sorted((self.model_extra or {}).keys() - {*OBJECT_META})
        if unknown:
            near = meant(unknown[0], OBJECT_META)
            raise ValueError(f"{', '.join(unknown)}: no key of Kubernetes' metadata; name is enough{near}")
        return self


class Recipe(Model):
    model_config = DEFERRED

    api_version: Literal["recaption.dev/v1alpha1"]
    kind: Literal["Recaption"]
    metadata: Metadata
    spec: Spec
    status: Annotated[Any, Field(exclude=True)] = None
    """What a cluster's operator says of it, when the recipe is read back from there."""

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        problems = problems_of(self.spec)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def name(self) -> str:
        return self.metadata.name


def problems_of(spec: Spec, root: str = "spec") -> list[str]:
    """List what the schema alone can't say, a line each: names that must be unique, names that must exist."""
    problems: list[str] = []

    def unique(where: str, names: Sequence[str | None]) -> None:
        seen: set[str | None] = set()
        for i, name in enumerate(names):
            if name is not None and name in seen:
                problems.append(f"{root}.{where}[{i}].name: {name} is taken; every name must be used once")
            seen.add(name)

    def known(where: str, name: str, allowed: list[str], what: str) -> None:
        if name not in allowed:
            problems.append(f"{root}.{where}: {name} is no {what}; there is {', '.join(allowed) or 'none'}")

    unique("columns", [column.name for column in spec.columns])
    texts, early = spec.texts, {*spec.early}
    before_captions = [name for name in texts if name in early]
    for i, column in enumerate(spec.columns):
        at = f"columns[{i}].{column.kind}.text"
        known(at, column.options.source_text, before_captions, "text that is there before captions")
    if spec.download and spec.pool.shards is not None:
        problems.append(f"{root}.download: there is nothing to download, {root}.pool has shards")
    lending = listed([c.key for c in COMPARISONS if c.is_share], "or")
    named: dict[About, list[str]] = {"score": spec.scores, "flag": spec.flags}
    unique("mixtures", [m.name for m in spec.mixtures])
    unique("compute.pools", [p.name for p in spec.compute.pools])
    if spec.compute.train.pool:
        kind = f"pool with{'out' if spec.compute.train.gpus_per_node == 0 else ''} an accelerator"
        known("compute.train.pool", spec.compute.train.pool, [p.name for p in spec.compute.training_pools()], kind)
    for m, mixture in enumerate(spec.mixtures):
        where = f"mixtures[{m}].rules"
        lenders = [r.name for r in mixture.rules if r.name and lent_by(r)]
        unique(where, [r.name for r in mixture.rules])
        for r, rule in enumerate(mixture.rules):
            for name in texts_of(rule):
                known(f"{where}[{r}].text", name, texts, "text")
            for c, condition in enumerate(rule.where):
                at = f"{where}[{r}].where[{c}]"
                known(f"{at}.{condition.about}", condition.name, named[condition.about], condition.about)
                if condition.lender is not None:
                    what = f"rule with a {lending} condition"
                    known(f"{at}.{condition.comparison.key}.rule", condition.lender, lenders, what)
    for i, condition in enumerate(spec.drop):
        there = [name for name in named[condition.about] if name in early]
        known(f"drop[{i}].{condition.about}", condition.name, there, f"{condition.about} that is there before captions")
        if condition.lender is not None:
            problems.append(
                f"{root}.drop[{i}].{condition.comparison.key}: found the threshold of rule {condition.lender}; `drop` "
                "is for all mixtures and knows no rule: give a number"
            )
    for i, name in enumerate(spec.training_sets.blur):
        known(f"trainingSets.blur[{i}]", name, spec.boxes, "column with boxes")
    for i, name in enumerate((spec.train.mixtures if spec.train else None) or []):
        known(f"train.mixtures[{i}]", name, [m.name for m in spec.mixtures], "mixture")
    if spec.evaluate and not spec.train:
        problems.append(f"{root}.evaluate: there is nothing to evaluate without {root}.train")
    return problems


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        PermanentError: one line per mistake: the path in the YAML, what was found, what is allowed.
    """
    return parse_recipe(read_file(path, "recipe"), str(path))


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Check a recipe given as YAML text; `where` names it in messages. Raises PermanentError like load_recipe."""
    value = read_yaml(text, where)
    if value.get("kind") == "RecaptionSchedule":
        raise PermanentError(
            f"{where}: kind: found RecaptionSchedule, which a cluster's operator takes (kubectl apply); expected a "
            "Recaption, such as its template with a dump's id instead of {dump}"
        )
    return check(Recipe, value, where)


def dump_recipe(recipe: Recipe) -> str:
    """Write the recipe as YAML, defaults included."""
    return dump_yaml(json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True)))

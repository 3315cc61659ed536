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
from components.recipe.compute import Compute
from components.recipe.conditions import COMPARISONS, About, listed
from components.recipe.mixtures import AnyCondition, Mixture, TrainingSets, lent_by, texts_of
from components.recipe.screens import Screen
from components.recipe.sources import Download, Pool
from components.recipe.training import Evaluate, Train
from components.recipe.types import Address, Model, Name, Nulls, ObjectName, Seed, Text, Whole
from components.recipe.yaml_io import check, dump_yaml, read_file, read_yaml

RAW = "raw"  # the text that came with the image


class Scorer(Model):
    """The CLIP whose cosines are the scores."""

    model: Text = "ViT-L-14"
    """An open_clip model name, hf-hub:org/name, or local-dir:/folder with open_clip_config.json."""
    weights: Text | None = None
    """An open_clip pretrained tag or a checkpoint file; openai for ViT-L-14. Left out where the model brings them."""

    @model_validator(mode="before")
    @classmethod
    def _paper_weights(cls, value: Any) -> Any:
        known = isinstance(value, dict) and value.get("model") in (None, "ViT-L-14")
        if known and value.get("weights") is None:
            return {**value, "weights": "openai"}  # the paper's and DataComp's scorer
        return value


class Captioner(Model):
    """A model that captions images, with how it samples."""

    name: Name
    """How rules call its captions."""
    model: Text
    """A Hugging Face id or folder of BLIP or BLIP-2, or open_clip:<CoCa model>/<pretrained tag>."""
    revision: Text | None = None
    """Commit, branch or tag of a Hugging Face id."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.75
    """Softmax temperature; the paper's default (section 4, Table 3)."""
    top_k: Annotated[int, Field(ge=1, le=1000), Whole] = 50
    """Of how many most likely tokens one is sampled."""
    min_length: Annotated[int, Field(ge=0, le=256), Whole] = 5
    """In tokens of the caption."""
    max_length: Annotated[int, Field(ge=1, le=256), Whole] = 40
    """In tokens of the caption."""
    seed: Seed = 0
    """Of the sampling: another one gives other captions."""

    @model_validator(mode="after")
    def _lengths(self) -> Captioner:
        if self.min_length > self.max_length:
            raise ValueError(f"minLength {self.min_length} is above maxLength {self.max_length}")
        return self


class ImportedColumn(Model):
    """A column made elsewhere, joined by uid."""

    name: Name
    """How rules call it."""
    kind: Literal["score", "text", "flag"]
    """score: float, higher = better; text: captions; flag: true or false."""
    source: Annotated[Address, Field(alias="from")]
    """A .parquet, .csv or (flags) DataComp subset .npy file, or a folder of them, with a `uid` field."""
    field: Text | None = None
    """Which field of a parquet or CSV holds the value. Left out for a .npy: listed uids are true."""

    @model_validator(mode="after")
    def _field(self) -> ImportedColumn:
        if self.source.endswith(".npy") != (self.field is None):
            raise ValueError(
                "a .npy lists uids and has no field; a parquet or CSV needs `field`, the name of its value"
            )
        if self.source.endswith(".npy") and self.kind != "flag":
            raise ValueError("a .npy lists uids, so its kind must be flag")
        return self


class Filter(Model):
    """A flag by raw text and image size, as DataComp's filters."""

    name: Name
    """How rules call it."""
    kind: Literal["english", "basic", "imagenet21k"]
    """What raw text and image must be, as DataComp's filters of these names: in English; that, longer than 2 words and
    5 characters, with an image of at least 200 pixels and at most 3:1; in English with a word that names an
    ImageNet-21k class (text_based)."""
    language_model: Text | None = None
    """A fastText model such as DataComp's lid.176.bin; left out: the bundled, quantised lid.176.ftz."""
    wordnet: Text | None = None
    """imagenet21k: folder of WordNet 3.0's files (index.noun, data.noun, …)."""
    wnids: Text | None = None
    """imagenet21k: file with the id of a class a line, such as n02084071."""

    @model_validator(mode="after")
    def _paths(self) -> Filter:
        if {self.wordnet is not None, self.wnids is not None} != {self.kind == "imagenet21k"}:
            raise ValueError("kind imagenet21k needs `wordnet` and `wnids`, the others have neither")
        return self


class Spec(Model):
    """What is asked for."""

    storage: Address
    """Folder, gs:// or s3:// prefix where everything that is computed goes."""
    pool: Pool
    """The candidate image-text pairs."""
    scorer: Scorer = Scorer()
    """The CLIP whose cosines are the scores; the default is the paper's and DataComp's."""
    captioners: Annotated[list[Captioner], Field(max_length=64)] = []
    """Models that caption images; a rule uses the captions by the captioner's name."""
    columns: Annotated[list[ImportedColumn], Field(max_length=64)] = []
    """Columns made elsewhere, joined by uid."""
    filters: Annotated[list[Filter], Field(max_length=64)] = []
    """Flags by raw text and image size."""
    screens: Annotated[list[Screen], Field(max_length=64)] = []
    """Scores of what a sample should not be."""
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
        """Names a rule may use as a text."""
        return [RAW, *(c.name for c in self.captioners), *(c.name for c in self.columns if c.kind == "text")]

    @property
    def scores(self) -> list[str]:
        """Names a condition may use as a score."""
        imported = (c.name for c in self.columns if c.kind == "score")
        return [*self.texts, *imported, *(s.name for s in self.screens)]

    @property
    def flags(self) -> list[str]:
        """Names a condition may use as a flag."""
        return [*(c.name for c in self.columns if c.kind == "flag"), *(f.name for f in self.filters)]

    @property
    def boxes(self) -> list[str]:
        """Names of the columns with boxes, inside which images can be blurred."""
        return [s.name for s in self.screens if s.kind == "faces"]

    @property
    def early(self) -> list[str]:
        """Names of the texts, scores and flags that are there before captions."""
        captioners = {c.name for c in self.captioners}
        return [name for name in (*self.scores, *self.flags) if name not in captioners]


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
            raise ValueError(f"{', '.join(unknown)}: no key of Kubernetes' metadata; name is enough")
        return self


class Recipe(Model):
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
    """What the schema alone can't say: names that must be unique and names that must exist; a line each."""
    problems: list[str] = []

    def unique(where: str, names: Sequence[str | None], taken: tuple[str, ...] = ()) -> None:
        seen: set[str | None] = set(taken)
        for i, name in enumerate(names):
            if name is not None and name in seen:
                problems.append(f"{root}.{where}[{i}].name: {name} is taken; every name must be used once")
            seen.add(name)

    def known(where: str, name: str, allowed: list[str], what: str) -> None:
        if name not in allowed:
            problems.append(f"{root}.{where}: {name} is no {what}; there is {', '.join(allowed) or 'none'}")

    unique("captioners", [c.name for c in spec.captioners], (RAW,))
    taken = (RAW, *(c.name for c in spec.captioners))
    unique("columns", [c.name for c in spec.columns], taken)
    taken = (*taken, *(c.name for c in spec.columns))
    unique("filters", [f.name for f in spec.filters], taken)
    unique("screens", [s.name for s in spec.screens], (*taken, *(f.name for f in spec.filters)))
    known_texts = [RAW, *(c.name for c in spec.columns if c.kind == "text")]
    for i, screen in enumerate(spec.screens):
        if screen.text:
            known(f"screens[{i}].text", screen.text, known_texts, "text that is there before captions")
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
                known(f"{where}[{r}].text", name, spec.texts, "text")
            for c, condition in enumerate(rule.where):
                at = f"{where}[{r}].where[{c}]"
                known(f"{at}.{condition.about}", condition.name, named[condition.about], condition.about)
                if condition.lender is not None:
                    what = f"rule with a {lending} condition"
                    known(f"{at}.{condition.comparison.key}.rule", condition.lender, lenders, what)
    for i, condition in enumerate(spec.drop):
        early = [name for name in named[condition.about] if name in spec.early]
        known(f"drop[{i}].{condition.about}", condition.name, early, f"{condition.about} that is there before captions")
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
    """The recipe as YAML, defaults included."""
    return dump_yaml(json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True)))

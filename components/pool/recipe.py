"""The recipe: what a user asks for, as one pydantic model that every door reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from components.pool.errors import PermanentError

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Share = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Quantity = Annotated[
    str, Field(pattern=r"^[0-9]{1,12}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
]  # Kubernetes', in part

RAW = "raw"  # the text that came with the image


def _by_key(expected: str, plain: str | None = None, **models: str) -> Discriminator:
    """Choose a union's member by the key that only it has, so that one mistake gives one message."""

    def choose(value: Any) -> str | None:
        if not isinstance(value, (dict, BaseModel)):
            return plain
        keys = value if isinstance(value, dict) else type(value).model_fields
        return next((tag for key, tag in models.items() if key in keys or to_camel(key) in keys), None)

    return Discriminator(choose, custom_error_type="choice", custom_error_message=f"expected {expected}")


class Model(BaseModel):
    """Base of all parts of a recipe: camelCase keys, unknown keys refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class Subset(Model):
    shards: Annotated[int, Field(ge=1)]
    """How many shards to take."""
    seed: int = 0
    """Which ones: the shards with the lowest hash of (seed, name), so a growing pool keeps most of a subset."""


class Pool(Model):
    name: Name
    """Under which name the pool's columns are kept and shared between recipes."""
    shards: Text
    """Folder, gs:// or s3:// prefix of webdataset tars in DataComp's (img2dataset's) layout, used where they are."""
    subset: Subset | None = None
    """Use only some shards; None uses all."""


class Scorer(Model):
    model: Text = "ViT-L-14"
    """An open_clip model name, hf-hub:org/name, or local-dir:/folder with open_clip_config.json."""
    weights: Text | None = None
    """An open_clip pretrained tag or a checkpoint file; openai for ViT-L-14. None where the model brings them."""

    @model_validator(mode="before")
    @classmethod
    def _paper_weights(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("model", "ViT-L-14") == "ViT-L-14" and not value.get("weights"):
            return {**value, "weights": "openai"}  # the paper's and DataComp's scorer
        return value


class Captioner(Model):
    name: Name
    model: Text
    """A Hugging Face id or folder of BLIP or BLIP-2, or open_clip:<CoCa model>/<pretrained tag>."""
    revision: Text | None = None
    """Commit, branch or tag of a Hugging Face id."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.75
    """Softmax temperature; the paper's default (section 4, Table 3)."""
    top_k: Annotated[int, Field(ge=1, le=1000)] = 50
    min_length: Annotated[int, Field(ge=0, le=256)] = 5
    """In tokens of the caption."""
    max_length: Annotated[int, Field(ge=1, le=256)] = 40
    seed: int = 0

    @model_validator(mode="after")
    def _lengths(self) -> Captioner:
        if self.min_length > self.max_length:
            raise ValueError(f"minLength {self.min_length} is above maxLength {self.max_length}")
        return self


class ImportedColumn(Model):
    name: Name
    kind: Literal["score", "text", "flag"]
    """score: float, higher = better; text: captions; flag: true or false."""
    source: Annotated[str, Field(alias="from", min_length=1, max_length=1024)]
    """A .parquet, .csv or (flags) DataComp subset .npy file, or a folder of them, with a `uid` field."""
    field: Text | None = None
    """Which field of a parquet or CSV holds the value. None for a .npy: listed uids are true."""

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
    name: Name
    kind: Literal["english", "basic", "imagenet21k"]
    """What raw text and image must be, as DataComp's filters of these names: in English; that, longer than 2 words and
    5 characters, with an image of at least 200 pixels and at most 3:1; in English with a word that names an
    ImageNet-21k class (text_based)."""
    language_model: Text | None = None
    """A fastText model such as DataComp's lid.176.bin; None is the bundled, quantised lid.176.ftz."""
    wordnet: Text | None = None
    """imagenet21k: folder of WordNet 3.0's files (index.noun, data.noun, …)."""
    wnids: Text | None = None
    """imagenet21k: file with the id of a class a line, such as n02084071."""

    @model_validator(mode="after")
    def _paths(self) -> Filter:
        if {self.wordnet is not None, self.wnids is not None} != {self.kind == "imagenet21k"}:
            raise ValueError("kind imagenet21k needs `wordnet` and `wnids`, the others have neither")
        return self


class RuleThreshold(Model):
    rule: Name
    """The rule whose `top` condition gives the threshold."""


class ScoreCondition(Model):
    score: Name
    """A text (its cosine with the image by the scorer) or an imported score."""
    top: Share | None = None
    """Among the best share of the whole pool by this score, ties included."""
    at_least: (
        Annotated[
            Annotated[float, Field(allow_inf_nan=False), Tag("<number>")]
            | Annotated[RuleThreshold, Tag("<RuleThreshold>")],
            _by_key("a number or {rule: NAME}", "<number>", rule="<RuleThreshold>"),
        ]
        | None
    ) = None
    """At least this number, or the threshold of another rule of this mixture."""

    @model_validator(mode="after")
    def _one(self) -> ScoreCondition:
        if (self.top is None) == (self.at_least is None):
            raise ValueError("give exactly one of `top` and `atLeast`")
        return self


class FlagCondition(Model):
    flag: Name
    """An imported flag or a filter."""
    equals: bool = True


Condition = Annotated[
    Annotated[ScoreCondition, Tag("<ScoreCondition>")] | Annotated[FlagCondition, Tag("<FlagCondition>")],
    _by_key("{score: …} or {flag: …}", score="<ScoreCondition>", flag="<FlagCondition>"),
]


class Concat(Model):
    concat: Annotated[list[Name], Field(min_length=2, max_length=8)]
    """Texts joined by a space, in this order."""


class BestOf(Model):
    best_of: Annotated[list[Name], Field(min_length=2, max_length=64)]
    """Per image the text with the highest cosine; the first of equals."""


class Rule(Model):
    name: Name | None = None
    text: Annotated[
        Annotated[Name, Tag("<name>")] | Annotated[Concat, Tag("<Concat>")] | Annotated[BestOf, Tag("<BestOf>")],
        _by_key("a text, {concat: [A, B]} or {bestOf: [A, B]}", "<name>", concat="<Concat>", best_of="<BestOf>"),
    ]
    """What an image gets that matches: `raw`, a captioner, an imported text, or a combination."""
    where: Annotated[list[Condition], Field(max_length=16)] = []
    """All must hold; a sample without the score or flag never matches. Empty matches every image with that text."""


class Mixture(Model):
    name: Name
    emit: Literal["first", "all"] = "first"
    """first: the first rule that matches an image gives its text; all: every match is a pair of its own."""
    rules: Annotated[list[Rule], Field(min_length=1, max_length=64)]


class ScaleConfig(Model):
    """Hyperparameters of a CLIP training; DataComp's are the named scales."""

    model: Text
    """open_clip model name or the path of a model config .json."""
    batch_size: Annotated[int, Field(ge=1)]
    """Global batch in samples, whatever the number of GPUs."""
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)]
    """Steps."""
    samples: Annotated[int, Field(ge=1)]
    """Samples seen in total."""
    beta2: float | None = None
    """Adam's; None is open_clip's default for the model."""
    precision: Text = "amp"
    """open_clip's --precision; on a machine without a GPU fp32 is used."""
    checkpoints: Annotated[int, Field(ge=1)] = 5
    """How many checkpoints (open_clip's epochs) the training is cut into; resuming starts at the last one."""


ScaleName = Literal["debug", "small", "medium", "large", "xlarge"]


class Train(Model):
    scale: Annotated[
        Annotated[ScaleName, Tag("<name>")] | Annotated[ScaleConfig, Tag("<ScaleConfig>")],
        _by_key(
            "a scale's name or {model: …, batchSize: …, …}",
            "<name>",
            model="<ScaleConfig>",
            batch_size="<ScaleConfig>",
            samples="<ScaleConfig>",
        ),
    ] = "small"
    seed: int = 0
    mixtures: list[Name] | None = None
    """Which mixtures to train on; None is all."""


class Evaluate(Model):
    root: Text
    """Folder of zero-shot tasks in clip-benchmark's webdataset format, one folder each."""
    tasks: Annotated[
        Annotated[Literal["datacomp"], Tag("<name>")] | Annotated[list[Text], Field(min_length=1), Tag("<list>")],
        Discriminator(lambda value: "<list>" if isinstance(value, list) else "<name>"),
    ] = "datacomp"
    """Names of folders below root, or `datacomp` for its 38."""


class Accelerator(Model):
    resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,253}/[A-Za-z0-9._-]{1,63}$")] = "nvidia.com/gpu"
    """Kubernetes' name of the device."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices of one pod; a column's worker uses one."""


class Toleration(Model):
    """Kubernetes' toleration."""

    key: Text | None = None
    """None tolerates every taint, with operator Exists."""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _exists(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists has no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key")
        return self


class NodePool(Model):
    """Nodes of a cluster that take a share of every stage: GPU stages where it has an accelerator, else the others."""

    name: Name
    node_selector: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=317)], Annotated[str, Field(max_length=63)]],
        Field(max_length=16),
    ] = {}
    """Labels of its nodes."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints of its nodes; those of an accelerator and of the clouds' spot nodes are tolerated anyway."""
    accelerator: Accelerator | None = None
    parallelism: Annotated[int, Field(ge=1, le=10_000)] = 8
    """How many pods work at a time."""
    spot: bool = False
    """Nodes that the cloud may take back at any time; that costs no retry."""
    share: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Of the work, relative to the other pools of its kind."""
    cpu: Quantity | None = None
    """Cores that a pod asks for."""
    memory: Quantity | None = None
    """Memory that a pod asks for and may use; None is what the stage says that it needs."""
    priority_class: Name | None = None
    """A PriorityClass of the cluster."""
    queue: Name | None = None
    """A Kueue LocalQueue of the namespace; None where there is no Kueue."""


class TrainNodes(Model):
    """Nodes of a cluster that train one model together; their number changes no result."""

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] | None = None
    """None is the accelerator count of the pool."""
    pool: Name | None = None
    """Which of the pools: its labels, taints and accelerator; None is the first that has an accelerator."""
    parallelism: Annotated[int, Field(ge=1, le=200)] = 1
    """How many models train at a time, each on nodes of its own."""


class Compute(Model):
    shards_per_task: Annotated[int, Field(ge=1)] = 8
    """A task is this many shards: what one pod works through."""
    decoders: Annotated[int, Field(ge=0, le=256)] | None = None
    """Image decoding processes of one worker; None is one per core, 0 decodes inline."""
    batch_size: dict[Literal["embed", "score", "caption"], Annotated[int, Field(ge=1)]] = {}
    """Samples per batch of a stage, where the stage's own default doesn't fit the GPU."""
    pools: Annotated[list[NodePool], Field(max_length=16)] = []
    """In a cluster: which nodes work. A kind of stages (GPU or not) without a pool runs on any node that fits it."""
    train: TrainNodes = TrainNodes()
    """In a cluster: what a CLIP is trained on."""
    deadline_hours: Annotated[int, Field(ge=1, le=8760)] = 168
    """In a cluster: after this time a stage is ended, finished or not; running it again goes on."""


class Spec(Model):
    storage: Text
    """Folder, gs:// or s3:// prefix where everything that is computed goes."""
    pool: Pool
    scorer: Scorer = Scorer()
    captioners: Annotated[list[Captioner], Field(max_length=64)] = []
    columns: Annotated[list[ImportedColumn], Field(max_length=64)] = []
    """Columns made elsewhere, joined by uid."""
    filters: Annotated[list[Filter], Field(max_length=64)] = []
    """Flags by raw text and image size."""
    mixtures: Annotated[list[Mixture], Field(min_length=1, max_length=200)]
    train: Train | None = None
    evaluate: Evaluate | None = None
    compute: Compute = Compute()

    @property
    def texts(self) -> list[str]:
        """Names a rule may use as a text."""
        return [RAW, *(c.name for c in self.captioners), *(c.name for c in self.columns if c.kind == "text")]

    @property
    def scores(self) -> list[str]:
        """Names a condition may use as a score."""
        return [*self.texts, *(c.name for c in self.columns if c.kind == "score")]

    @property
    def flags(self) -> list[str]:
        """Names a condition may use as a flag."""
        return [*(c.name for c in self.columns if c.kind == "flag"), *(f.name for f in self.filters)]


class Metadata(BaseModel):
    """Kubernetes' object metadata: only the name matters here."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Name


class Recipe(Model):
    api_version: Literal["recaption.dev/v1alpha1"]
    kind: Literal["Recaption"]
    metadata: Metadata
    spec: Spec

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        problems = list(_problems(self.spec))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def name(self) -> str:
        return self.metadata.name


def _problems(spec: Spec) -> list[str]:
    """What the schema alone can't say: names that must be unique and names that must exist."""
    problems: list[str] = []

    def unique(where: str, names: list[str], taken: tuple[str, ...] = ()) -> None:
        seen = set(taken)
        for i, name in enumerate(names):
            if name in seen:
                problems.append(f"spec.{where}[{i}].name: {name} is taken; every name must be used once")
            seen.add(name)

    def known(where: str, name: str, allowed: list[str], what: str) -> None:
        if name not in allowed:
            problems.append(f"spec.{where}: {name} is no {what}; there is {', '.join(allowed) or 'none'}")

    unique("captioners", [c.name for c in spec.captioners], (RAW,))
    taken = (RAW, *(c.name for c in spec.captioners))
    unique("columns", [c.name for c in spec.columns], taken)
    unique("filters", [f.name for f in spec.filters], (*taken, *(c.name for c in spec.columns)))
    unique("mixtures", [m.name for m in spec.mixtures])
    unique("compute.pools", [p.name for p in spec.compute.pools])
    if spec.compute.train.pool:
        gpu_pools = [p.name for p in spec.compute.pools if p.accelerator]
        known("compute.train.pool", spec.compute.train.pool, gpu_pools, "pool with an accelerator")
    for m, mixture in enumerate(spec.mixtures):
        where = f"mixtures[{m}].rules"
        thresholds = [r.name for r in mixture.rules if r.name and top_of(r)]
        unique(where, [r.name for r in mixture.rules if r.name])
        for r, rule in enumerate(mixture.rules):
            for name in texts_of(rule):
                known(f"{where}[{r}].text", name, spec.texts, "text")
            for c, condition in enumerate(rule.where):
                at = f"{where}[{r}].where[{c}]"
                if isinstance(condition, FlagCondition):
                    known(f"{at}.flag", condition.flag, spec.flags, "flag")
                    continue
                known(f"{at}.score", condition.score, spec.scores, "score")
                if isinstance(condition.at_least, RuleThreshold):
                    known(f"{at}.atLeast.rule", condition.at_least.rule, thresholds, "rule with a `top` condition")
    for i, name in enumerate((spec.train.mixtures if spec.train else None) or []):
        known(f"train.mixtures[{i}]", name, [m.name for m in spec.mixtures], "mixture")
    if spec.evaluate and not spec.train:
        problems.append("spec.evaluate: there is nothing to evaluate without spec.train")
    return problems


def texts_of(rule: Rule) -> list[str]:
    """The plain texts a rule's text is made of."""
    if isinstance(rule.text, Concat):
        return rule.text.concat
    return rule.text.best_of if isinstance(rule.text, BestOf) else [rule.text]


def top_of(rule: Rule) -> ScoreCondition | None:
    """The rule's first `top` condition: the threshold it lends to others."""
    return next((c for c in rule.where if isinstance(c, ScoreCondition) and c.top is not None), None)


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        PermanentError: one line per mistake: the path in the YAML, what was found, what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Check a recipe given as YAML text; `where` names it in messages. Raises PermanentError like load_recipe."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise PermanentError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise PermanentError(f"{where}: expected a mapping with apiVersion, kind, metadata and spec")
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise PermanentError("\n".join(f"{where}: {line}" for line in _lines(error))) from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML readers silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} comes twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, defaults included."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True)), sort_keys=False)


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for e in error.errors(include_url=False):
        if e["type"] == "value_error" and not e["loc"]:
            lines.extend(str(e["ctx"]["error"]).splitlines())
            continue
        where = _path(e["loc"])
        if e["type"] == "extra_forbidden":
            message = f"unknown key; {_allowed(e['loc'])}"
        elif e["type"] == "missing":
            message = "missing"
        else:
            message = f"found {_short(e['input'])}: {e['msg'].removeprefix('Value error, ')}"
        line = f"{where}: {message}"
        if line not in lines:
            lines.append(line)
    return lines


def _path(location: tuple[int | str, ...]) -> str:
    """pydantic's location without the tags of union members, which are not keys of the YAML."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}" if path else part
    return path or "recipe"


def _allowed(location: tuple[int | str, ...]) -> str:
    """The keys that the model at this location has."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, str) and part.startswith("<"):
            model = globals()[part.strip("<>")]
        elif isinstance(part, str):
            field = next(f for n, f in model.model_fields.items() if part in (n, f.alias))
            model = _model_in(field.annotation)
    return "allowed are " + ", ".join(f.alias or n for n, f in model.model_fields.items())


def _model_in(annotation: Any) -> Any:
    """The first model inside an annotation like `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, (_model_in(a) for a in getattr(annotation, "__args__", ()))), None)


def _short(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

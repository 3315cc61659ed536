"""What a person can set in the KFP UI, and how it becomes a recipe: one table, from which all else derives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.base.errors import PermanentError
from components.base.version import version
from components.recipe import recipe as schema
from components.recipe.sources import INDEX
from components.recipe.yaml_io import check, dump_yaml, read_yaml

DUMP = "{dump}"
SOME_DUMP = "CC-MAIN-2000-01"  # stands in while a schedule's recipe is checked
NOT_HERE = "not in a cluster, where the downloader must not reach private addresses"
CAPTIONED = "synthetic"  # how the captioner is called in a recipe made of parameters
IMAGES = ("operator", "cpu", "gpu")  # targets of images/Dockerfile


@dataclass(frozen=True)
class Parameter:
    """One input of the pipeline."""

    name: str
    default: Any
    """Its type is the parameter's: str, int, float or list."""
    description: str


RECIPE = (
    Parameter("recipe", "", "A whole recipe as YAML. When it is given, it alone counts, up to `shards_per_task`."),
    Parameter("name", "recaption", "Name of the run's recipe."),
    Parameter(
        "storage", "", "Where everything that is computed goes: gs://… or s3://bucket/prefix, or a mounted folder."
    ),
    Parameter("pool_name", "", "Name under which the pool's columns are kept and shared between recipes."),
    Parameter("shards", "", "Folder or gs://, s3:// prefix of the pool's webdataset tars in DataComp's layout."),
    Parameter(
        "urls", "", "Instead of shards: a .parquet or .csv, or a folder of them, with url and text: to be downloaded."
    ),
    Parameter(
        "common_crawl", "", "Instead of shards: a dump such as CC-MAIN-2026-43, or latest, to be downloaded from."
    ),
    Parameter("crawl_files", 0, "How many of the dump's files; 0: all, which are some 100,000."),
    Parameter("contact", "", "Page or mailbox where those whose images are downloaded reach you; in the user agent."),
    Parameter("scorer_model", "ViT-L-14", "An open_clip model, hf-hub:org/name or local-dir:/folder."),
    Parameter(
        "scorer_weights", "openai", "An open_clip pretrained tag or a checkpoint; empty where the model has them."
    ),
    Parameter("captioner_model", "Salesforce/blip2-opt-2.7b", "A Hugging Face id or folder of BLIP or BLIP-2."),
    Parameter("temperature", 0.75, "Softmax temperature of the captioner."),
    Parameter("top_k", 50, "Of how many most likely tokens the captioner samples."),
    Parameter("strategies", ["raw-top-plus-synthetic-filtered"], "Mixtures to make, out of: STRATEGIES."),
    Parameter("fraction", 0.3, "Share of the pool that `top` in a strategy's name means, by CLIP score."),
    Parameter("train_scale", "medium", "DataComp's scale of the training: small, medium, large, xlarge; empty: none."),
    Parameter("train_seed", 0, "Seed of the training."),
    Parameter("train_nodes", 1, "How many nodes train one CLIP together; that changes no result."),
    Parameter("evaluate_root", "", "Folder of zero-shot tasks in clip-benchmark's layout; empty: no evaluation."),
    Parameter("evaluate_tasks", [], "Names of folders below evaluate_root; empty: DataComp's 38 tasks."),
    Parameter("node_pools", [], "The recipe's compute.pools: a list of {name, accelerator: {count}, parallelism, …}."),
    Parameter("shards_per_task", 8, "How many shards one pod works through."),
)
RUN = (
    Parameter("claim", "", "Who claims the run; empty: this KFP run. Give a dead run's id to go on in its place."),
    Parameter("job_service_account", "", "Service account of the Jobs' pods: who may use the storage. Empty: default."),
    Parameter("job_secret", "recaption", "A Secret of environment variables, if there is one: HF_TOKEN, AWS_… for s3."),
    Parameter("schedule", "", "Name of the schedule, of a recurring run: {dump} in the recipe is the newest dump."),
    Parameter("dumps", INDEX, "Base address of Common Crawl's collinfo.json, or a folder with it."),
    Parameter("oldest_dump", "", "The schedule does this dump and all newer ones; empty: only the newest there is."),
)


def parameters(images: str = "recaption", tag: str | None = None) -> tuple[Parameter, ...]:
    """All of them, in the order of the UI.

    Args:
        images: What comes before -operator, -cpu and -gpu in the images' names, registry included.
        tag: Their tag; None is this version.
    """
    what = {
        "operator": "Image that plans, launches and watches.",
        "cpu": "Image of the stages without a model.",
        "gpu": "Image of the stages with a model.",
    }
    named = [
        Parameter(f"{kind}_image", f"{images}-{kind}:{tag or version()}", f"{what[kind]} Better by digest: …@sha256:…")
        for kind in IMAGES
    ]
    listed = ", ".join(STRATEGIES)
    return (
        *(Parameter(p.name, p.default, p.description.replace("STRATEGIES", listed)) for p in RECIPE),
        *RUN,
        *named,
    )


def mixtures_of(strategies: list[str], fraction: float) -> list[dict[str, Any]]:
    """The mixtures of components/stages/mix/strategies that these names mean, for one captioner and one share.

    Raises:
        PermanentError: there is no such strategy.
    """
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown or not strategies:
        raise PermanentError(
            f"parameter strategies: {', '.join(unknown) or 'none given'}; there is {', '.join(STRATEGIES)}"
        )
    top = {"score": "raw", "top": fraction}
    synthetic_top = {"score": CAPTIONED, "top": fraction}
    good = {"name": "good", "text": "raw", "where": [top]}
    threshold = {"score": CAPTIONED, "atLeast": {"rule": "good"}}
    rules: dict[str, list[dict[str, Any]]] = {
        "raw": [{"text": "raw"}],
        "raw-top": [{"text": "raw", "where": [top]}],
        "synthetic": [{"text": CAPTIONED}],
        "synthetic-top": [{"text": CAPTIONED, "where": [synthetic_top]}],
        "raw-top-plus-synthetic": [{"text": "raw", "where": [top]}, {"text": CAPTIONED}],
        "raw-top-plus-synthetic-filtered": [good, {"text": CAPTIONED, "where": [threshold]}],
    }
    return [{"name": name, "rules": rules[name]} for name in strategies]


STRATEGIES = (
    "raw",
    "raw-top",
    "synthetic",
    "synthetic-top",
    "raw-top-plus-synthetic",
    "raw-top-plus-synthetic-filtered",
)


def recipe_of(values: Mapping[str, Any], dump: str | None = None) -> schema.Recipe:
    """The recipe that parameters mean.

    Args:
        values: By the names of RECIPE.
        dump: What {dump} is: as Common Crawl spells it, in names in lower case. None where there is no schedule.

    Raises:
        PermanentError: it isn't valid, a line per mistake; or it has {dump} without a schedule, or the other way.
    """
    text = values["recipe"] or dump_yaml(_composed(values))
    where = "recipe" if values["recipe"] else "parameters"
    if (DUMP in text) != (dump is not None):
        what = f"{DUMP} stands only in the recipe of a schedule" if dump is None else f"a schedule's needs {DUMP}"
        raise PermanentError(f"{where}: {what}, in spec.pool.name and in shards, urls or commonCrawl.dump")
    if dump is None:
        return schema.parse_recipe(text, where)
    schema.parse_recipe(text.replace(DUMP, dump.lower()), where)  # every mistake is said here: names are lower case
    value = read_yaml(text.replace(DUMP, dump), where)
    for named in (value["metadata"], value["spec"]["pool"]):
        named["name"] = named["name"].lower()
    recipe = check(schema.Recipe, value, where)
    source = source_of(recipe)
    if dump not in source:
        raise PermanentError(f"{where}: spec.pool: found {source}, without {DUMP}; every dump is a pool of its own")
    return recipe


def source_of(recipe: schema.Recipe) -> str:
    """Where the pool comes from: an address, or a dump."""
    pool = recipe.spec.pool
    return pool.shards or pool.urls or (pool.common_crawl.dump if pool.common_crawl else "")


def refuse_networks(recipe: schema.Recipe, root: str = "recipe: spec") -> None:
    """Raises PermanentError where private addresses are allowed, as on one's own machine they may be."""
    if recipe.spec.download and recipe.spec.download.allow_networks:
        raise PermanentError(f"{root}.download.allowNetworks: {NOT_HERE}")


def _pool(values: Mapping[str, Any]) -> dict[str, Any]:
    given = [name for name in ("shards", "urls", "common_crawl") if values[name]]
    if len(given) != 1:
        raise PermanentError(f"parameters shards, urls, common_crawl: found {', '.join(given) or 'none'}; give one")
    if values["crawl_files"] and not values["common_crawl"]:
        raise PermanentError("parameter crawl_files: it takes some of a dump's files; give common_crawl")
    crawl = {"dump": values["common_crawl"], "sample": values["crawl_files"] or None}
    source = {"commonCrawl": crawl} if values["common_crawl"] else {given[0]: values[given[0]]}
    return {"name": values["pool_name"], **source}


def _composed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that single parameters make, unchecked."""
    strategies = [str(name) for name in values["strategies"]]
    captioner = {
        "name": CAPTIONED,
        "model": values["captioner_model"],
        "temperature": values["temperature"],
        "topK": values["top_k"],
    }
    spec: dict[str, Any] = {
        "storage": values["storage"],
        "pool": _pool(values),
        "scorer": {"model": values["scorer_model"], "weights": values["scorer_weights"] or None},
        "captioners": [captioner] if any(CAPTIONED in name for name in strategies) else [],
        "mixtures": mixtures_of(strategies, values["fraction"]),
        "compute": {
            "shardsPerTask": values["shards_per_task"],
            "train": {"nodes": values["train_nodes"]},
        },
    }
    if values["node_pools"]:
        spec["compute"]["pools"] = values["node_pools"]
    if values["contact"]:
        spec["download"] = {"contact": values["contact"]}
    if values["train_scale"]:
        spec["train"] = {"scale": values["train_scale"], "seed": values["train_seed"]}
    if values["evaluate_root"]:
        spec["evaluate"] = {"root": values["evaluate_root"], "tasks": values["evaluate_tasks"] or "datacomp"}
    return {
        "apiVersion": "recaption.dev/v1alpha1",
        "kind": "Recaption",
        "metadata": {"name": values["name"]},
        "spec": spec,
    }

"""The KFP pipeline's parameters, and the recipe that is the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from components.base.errors import PermanentError
from components.base.version import version
from components.recipe import recipe as schema
from components.recipe.sources import INDEX
from components.recipe.types import is_address
from components.recipe.yaml_io import check, read_yaml
from components.storage.addressed import SCHEMES

DUMP = "{dump}"
SOME_DUMP = "CC-MAIN-2000-01"  # stands in while a schedule's recipe is checked
NOT_HERE = "not in a cluster, where the downloader must not reach private addresses"
IN_A_BUCKET = "expected gs://bucket/path or s3://bucket/path; a cluster's pods share no folder"
IMAGES = {  # targets of images/Dockerfile
    "operator": "Image that plans, launches and watches.",
    "cpu": "Image of the stages without a model.",
    "gpu": "Image of the stages with a model.",
}


@dataclass(frozen=True)
class Parameter:
    """One input of the pipeline, a string."""

    name: str
    default: str
    description: str


RECIPE = Parameter("recipe", "", "The recipe as YAML. KFP's form keeps no line breaks: enter it there as JSON.")
RUN = (
    Parameter("claim", "", "Who claims the run; empty: this KFP run. Give a dead run's id to go on in its place."),
    Parameter("job_service_account", "", "Service account of the Jobs' pods: who may use the storage. Empty: default."),
    Parameter("job_secret", "recaption", "A Secret of environment variables, if there is one: HF_TOKEN, AWS_… for s3."),
    Parameter("schedule", "", "Name of the schedule, of a recurring run: {dump} in the recipe is the newest dump."),
    Parameter("dumps", INDEX, "Base address of Common Crawl's collinfo.json, or a folder with it."),
    Parameter("oldest_dump", "", "The schedule does this dump and all newer ones; empty: only the newest there is."),
)


def parameters(images: str = "recaption", tag: str | None = None) -> tuple[Parameter, ...]:
    """List the pipeline's parameters: the recipe, then what belongs to the cluster.

    Args:
        images: What comes before -operator, -cpu and -gpu in the images' names, registry included.
        tag: Their tag; None is this version.
    """
    named = (
        Parameter(f"{kind}_image", f"{images}-{kind}:{tag or version()}", f"{what} Better by digest: …@sha256:…")
        for kind, what in IMAGES.items()
    )
    return (RECIPE, *RUN, *named)


def recipe_of(values: Mapping[str, str], dump: str | None = None) -> schema.Recipe:
    """Read the recipe out of the parameters' values.

    Args:
        values: The parameters by name.
        dump: What {dump} is: as Common Crawl spells it, in names in lower case. None where there is no schedule.

    Raises:
        PermanentError: it isn't valid, a line per mistake; or it has {dump} without a schedule, or the other way.
    """
    text = values["recipe"]
    if not text.strip():
        raise PermanentError("parameter recipe: found nothing; expected a recipe as YAML or JSON")
    if (DUMP in text) != (dump is not None):
        what = f"{DUMP} stands only in the recipe of a schedule" if dump is None else f"a schedule's needs {DUMP}"
        raise PermanentError(f"recipe: {what}, in spec.pool.name and in shards, urls or commonCrawl.dump")
    if dump is None:
        return schema.parse_recipe(text, "recipe")
    schema.parse_recipe(text.replace(DUMP, dump.lower()), "recipe")  # says every mistake: names are lower case
    value = read_yaml(text.replace(DUMP, dump), "recipe")
    for named in (value["metadata"], value["spec"]["pool"]):
        named["name"] = named["name"].lower()
    recipe = check(schema.Recipe, value, "recipe")
    source = source_of(recipe)
    if dump not in source:
        raise PermanentError(f"recipe: spec.pool: found {source}, without {DUMP}; every dump is a pool of its own")
    return recipe


def source_of(recipe: schema.Recipe) -> str:
    """Return where the pool comes from: an address, or a dump."""
    pool = recipe.spec.pool
    return pool.shards or pool.urls or (pool.common_crawl.dump if pool.common_crawl else "")


def refuse_in_cluster(recipe: schema.Recipe) -> None:
    """Refuse what only a run on one machine may ask for. Raises PermanentError as the two functions that it calls."""
    refuse_networks(recipe)
    refuse_folders(recipe)


def refuse_folders(recipe: schema.Recipe, root: str = "recipe: spec") -> None:
    """Refuse a recipe whose data lie in a folder, which no two pods of a cluster share.

    Raises:
        PermanentError: a line for each such key.
    """
    if found := [f"{root}.{key}: found {value}; {IN_A_BUCKET}" for key, value in _folders(recipe.spec, "")]:
        raise PermanentError("\n".join(found))


def _folders(part: BaseModel, place: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of each address in a part of a recipe that is a folder's."""
    for name, declared in type(part).model_fields.items():
        value, key = getattr(part, name), f"{place}{declared.alias or name}"
        if isinstance(value, BaseModel):
            yield from _folders(value, f"{key}.")
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                if isinstance(entry, BaseModel):
                    yield from _folders(entry, f"{key}[{number}].")
        elif isinstance(value, str) and is_address(declared) and not value.startswith(SCHEMES):
            yield key, value


def refuse_networks(recipe: schema.Recipe, root: str = "recipe: spec") -> None:
    """Refuse a recipe that lets the downloader reach private addresses, which only one's own machine may.

    Raises:
        PermanentError: `download.allowNetworks` is not empty.
    """
    if recipe.spec.download and recipe.spec.download.allow_networks:
        raise PermanentError(f"{root}.download.allowNetworks: {NOT_HERE}")

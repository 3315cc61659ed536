"""Good and bad recipes and schedules: the command line and a cluster (its CRDs or the operator) must agree on each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from components.base.errors import PermanentError
from components.recipe.recipe import Recipe
from components.recipe.yaml_io import check, read_yaml
from pipelines.operator.schedule.template import check_schedule
from tests.pages import recipes

ROOT = Path(__file__).parents[3]
SCHEMA, RULE, OPERATOR = "schema", "rule", "operator"
Object = dict[str, Any]

BASE = read_yaml(
    """
apiVersion: recaption.dev/v1alpha1
kind: Recaption
metadata: {name: base}
spec:
  storage: gs://bucket/recaption
  pool: {name: medium, shards: gs://bucket/medium/shards, subset: {shards: 10}}
  columns:
  - {name: blip2, caption: {model: Salesforce/blip2-opt-2.7b, revision: main}}
  - {name: l14, import: {from: gs://bucket/metadata, field: clip_l14_similarity_score, as: score}}
  - {name: published, import: {from: s3://bucket/captions.csv, field: blip2-cap, as: text}}
  - {name: in1k, import: {from: gs://bucket/in1k_subset.npy, as: flag}}
  - {name: english, language: {is: en}}
  - {name: in21k, imagenet21k: {wordnet: /data/wordnet/dict, wnids: /data/wnids.txt}}
  mixtures:
  - name: raw30-blip2
    rules:
    - {name: good, text: raw, where: [{score: raw, top: 0.3}, {flag: english}]}
    - {text: blip2, where: [{score: blip2, atLeast: {rule: good}}]}
    - {text: {concat: [raw, blip2]}, where: [{score: l14, atLeast: 0.25}, {flag: in1k, equals: false}]}
    - {name: rest, text: {bestOf: [raw, published]}}
  train: {scale: medium, mixtures: [raw30-blip2]}
  evaluate: {root: gs://bucket/tasks, tasks: datacomp}
  compute:
    pools:
    - {name: cpu, nodeSelector: {cloud.example/pool: cpu}, memory: 4Gi}
    - {name: a100, accelerator: {count: 8}, tolerations: [{key: gpu, operator: Exists}]}
    train: {nodes: 4, pool: a100}
""",
    "corpus",
)
SCHEDULE_BASE = read_yaml(
    """
apiVersion: recaption.dev/v1alpha1
kind: RecaptionSchedule
metadata: {name: weekly}
spec:
  schedule: 0 6 * * *
  template:
    metadata: {labels: {team: data}}
    spec:
      storage: gs://bucket/recaption
      pool: {name: "cc-{dump}", shards: "gs://bucket/{dump}/shards"}
      mixtures: [{name: raw, rules: [{text: raw}]}]
""",
    "corpus",
)
GONE = object()


@dataclass(frozen=True)
class Case:
    """One object."""

    name: str
    value: Object
    says: str = ""
    """With what the command line's line begins; empty: it is valid."""
    by: str = ""
    """What refuses it in a cluster: the schema, a rule in the CRD, or the operator once the object is there."""
    differs: str = field(default="", compare=False)
    """Why the API server says otherwise, where it must."""

    def __str__(self) -> str:
        return self.name


def said(value: Object) -> str:
    """What the command line says of an object; empty when it is valid."""
    try:
        if value.get("kind") == "RecaptionSchedule":
            check_schedule(value, "")
        else:
            check(Recipe, value, "")
    except PermanentError as error:
        return "\n".join(line.removeprefix(": ") for line in str(error).splitlines())
    return ""


def changed(base: Object, changes: dict[str, Any]) -> Object:
    """The object with values at dotted paths; GONE removes a key."""
    whole = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part.replace("|", ".") for part in path.split(".")]
        at: Any = whole
        for part in parents:
            at = at[part]
        if value is GONE:
            del at[last]
        else:
            at[last] = copy.deepcopy(value)
    return whole


NO_FOLDERS = "on one machine a folder is as good a place as a bucket; a cluster's pods share none"


def files() -> Iterator[Case]:
    """The recipes that the repository shows to its users; those for one machine differ."""
    for case in _files():
        spec = case.value["spec"].get("template", case.value)["spec"]
        yield case if spec["storage"].startswith(("gs://", "s3://")) else replace(case, differs=NO_FOLDERS)


def _files() -> Iterator[Case]:
    for path in sorted((ROOT / "components" / "stages" / "mix" / "strategies").glob("*.yaml")):
        yield Case(f"strategy {path.stem}", read_yaml(path.read_text(), path.name))
    for path in sorted((ROOT / "manifests" / "samples").glob("*.yaml")):
        for value in yaml.safe_load_all(path.read_text()):
            if value["kind"] in ("Recaption", "RecaptionSchedule"):
                yield Case(f"sample {path.stem}", value)
    for block, value in recipes():
        yield Case(str(block), value)


def mixtures(count: int, rules: int = 2, text: str = "blip2") -> list[Object]:
    good = {"name": "good", "text": "raw", "where": [{"score": "raw", "top": 0.3}]}
    rest = {"text": text, "where": [{"score": "blip2", "atLeast": {"rule": "good"}}, {"flag": "in1k"}]}
    return [{"name": f"mixture-{i}", "rules": [good, *[rest] * (rules - 1)]} for i in range(count)]


SCALE = {"model": "ViT-B-32", "batchSize": 4096, "learningRate": 5e-4, "warmup": 500, "samples": 12_800_000}
NAME63 = "n" * 63
SCREENS: list[Object] = [
    {"name": "nsfw", "imageNsfw": {"weights": "/data/head.pth"}},
    {"name": "toxic", "textNsfw": {"model": "org/model", "revision": "main", "label": "nsfw", "text": "raw"}},
    {"name": "eval", "duplicates": {"index": "gs://bucket/eval.npy"}},
    {"name": "faces", "faces": {}},
    {"name": "yunet", "faces": {"weights": "/data/yunet.onnx"}},
]
COLUMNS: list[Object] = BASE["spec"]["columns"]


def screen(kind: str, **options: Any) -> dict[str, Any]:
    """The corpus' columns, and at the place 6 one of this kind."""
    return {"spec.columns": [*COLUMNS, {"name": "x", kind: options}]}


URLS = {"name": "medium", "urls": "gs://bucket/medium/metadata.parquet"}
CRAWL = {"name": "medium", "commonCrawl": {"dump": "CC-MAIN-2026-43", "sample": 100}}
DOWNLOAD = {
    **{"contact": "https://example.org/crawler?a='b'&c=[d]", "connections": 64, "perHostConnections": 1},
    **{"perHostRate": 0.5, "connectTimeout": 5, "readTimeout": 10.5, "timeout": 30, "retries": 0},
    **{"maxBytes": 1 << 30, "robots": True, "retry": ["transient", "all"]},
}
PRIVATE = {"spec.pool": URLS, "spec.download": {"allowNetworks": ["10.0.0.0/8", "::1/128"]}}

GOOD_CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "the least": {f"spec.{k}": GONE for k in ("columns", "train", "evaluate", "compute")}
    | {"spec.mixtures": [{"name": "raw", "rules": [{"text": "raw"}]}]},
    "200 mixtures": {"spec.mixtures": mixtures(200), "spec.train": {"scale": "small"}},
    "40 mixtures of 64 rules": {"spec.mixtures": mixtures(40, 64), "spec.train": {}},
    "nulls": {
        **dict.fromkeys(("spec.scorer", "spec.suspend", "spec.pool.subset", "spec.columns.0.caption.revision")),
        **dict.fromkeys(
            ("spec.columns.0.caption.topK", "spec.mixtures.0.emit", "spec.train.seed", "spec.compute.decoders")
        ),
        "spec.compute.pools.0.nodeSelector": {"a": None},
        "spec.compute.batchSize": {"embed": None},
    },
    "nulls of a union's other members": {
        "spec.mixtures.0.rules.0.where.0": {"score": "raw", "top": 0.3, "atLeast": None, "flag": None, "equals": None},
        "spec.mixtures.0.rules.2.text": {"concat": ["raw", "blip2"], "bestOf": None},
        "spec.mixtures.0.rules.1.name": None,
    },
    "whole numbers as doubles": {"spec.columns.0.caption.topK": 50.0, "spec.compute.train.nodes": 4.0},
    "doubles as whole numbers": {"spec.columns.0.caption.temperature": 1, "spec.mixtures.0.rules.2.where.0.atLeast": 0},
    "a negative threshold": {"spec.mixtures.0.rules.2.where.0.atLeast": -0.5},
    "the whole pool": {"spec.mixtures.0.rules.0.where.0.top": 1},
    "longest names": {"metadata.name": NAME63, "spec.pool.name": NAME63, "spec.compute.pools.0.name": NAME63},
    "a name with dots": {"metadata.name": "a.b-c.d0"},
    "names that YAML takes for something else": {"metadata.name": "1e3", "spec.pool.name": "2026-01-02"},
    "a namespace, labels and annotations": {
        "metadata.namespace": "default",
        "metadata.labels": {"team": "data", "empty": ""},
        "metadata.annotations": {"recaption.dev/retry": "3"},
    },
    "s3://": {"spec.storage": "s3://bucket", "spec.columns.1.import.from": "s3://bucket/metadata"},
    "suspended": {"spec.suspend": True},
    "every match": {"spec.mixtures.0.emit": "all"},
    "hyperparameters of one's own": {"spec.train.scale": SCALE},
    "all hyperparameters": {"spec.train.scale": {**SCALE, "beta2": 0.98, "precision": "fp32", "checkpoints": 8}},
    "hyperparameters in whole numbers": {"spec.train.scale": {**SCALE, "learningRate": 1, "warmup": 0}},
    "tasks by name": {"spec.evaluate.tasks": ["imagenet1k", "flickr30k"]},
    "tasks by default": {"spec.evaluate.tasks": GONE},
    "training without a choice": {"spec.train": {}},
    "training of nothing": {"spec.train.mixtures": []},
    "eight texts": {"spec.mixtures.0.rules.2.text": {"concat": ["raw", "blip2"] * 4}},
    "a rule's own threshold name used twice": {
        "spec.mixtures.0.rules.3": {"text": "published", "where": [{"score": "published", "atLeast": {"rule": "good"}}]}
    },
    "the same rule names in two mixtures": {"spec.mixtures": mixtures(2), "spec.train": GONE, "spec.evaluate": GONE},
    "sixteen conditions": {"spec.mixtures.0.rules.0.where": [{"score": "raw", "top": 0.5}] * 16},
    "models in a bucket": {
        "spec.scorer": {"model": "gs://bucket/models/clip"},
        "spec.columns.0.caption": {"model": "s3://bucket/models/blip2"},
        "spec.columns.5.imagenet21k": {"wordnet": "gs://bucket/wordnet", "wnids": "gs://bucket/wnids.txt"},
        "spec.train.scale": {**SCALE, "model": "gs://bucket/models/student.json"},
    },
    "another scorer": {"spec.scorer": {"model": "local-dir:/data/scorer"}},
    "the paper's scorer": {"spec.scorer": {}},
    "everything of a pool": {
        "spec.compute.pools.0": {
            **{"name": "l4", "parallelism": 64, "spot": True, "share": 0.5, "cpu": "8", "memory": "32Gi"},
            **{"priorityClass": "batch", "queue": "gpus", "nodeSelector": {}, "tolerations": [{"operator": "Exists"}]},
            **{"accelerator": {"resource": "amd.com/gpu", "count": 2}, "price": 0.75},
        }
    },
    "no GPU in the cluster": {
        "spec.compute.pools.1": {"name": "models", "accelerator": {"count": 0}},
        "spec.compute.train": {"nodes": 2, "pool": "models"},
    },
    "a training without GPUs": {"spec.compute.train": {"gpusPerNode": 0, "pool": "cpu"}},
    "no pool that would have the GPUs": {
        "spec.compute.pools.1.accelerator.count": 0,
        "spec.compute.train": {"gpusPerNode": 8},
    },
    "how it is cut": {
        "spec.compute": {"shardsPerTask": 1, "decoders": 0, "batchSize": {"caption": 64}, "deadlineHours": 1}
    },
    "every kind of screen": {"spec.columns": [*COLUMNS, *SCREENS]},
    "a screen by an imported text": screen("textNsfw", model="x", label="y", text="published"),
    "a rule by a screen": {
        "spec.columns": [*COLUMNS, SCREENS[0]],
        "spec.mixtures.0.rules.0.where.1": {"score": "nsfw", "atLeast": 0.5},
    },
    "at most": {
        "spec.columns": [*COLUMNS, SCREENS[0]],
        "spec.mixtures.0.rules.0.where": [{"score": "nsfw", "atMost": 0.5}, {"score": "raw", "top": 0.3}],
    },
    "at most a whole number, and nulls": {
        "spec.mixtures.0.rules.0.where.1": {"score": "l14", "atMost": 1, "atLeast": None, "top": None}
    },
    "everything to drop": {
        "spec.columns": [*COLUMNS, *SCREENS],
        "spec.drop": [
            {"score": "nsfw", "atLeast": 0.9},
            {"score": "toxic", "top": 0.05},
            {"score": "raw", "atMost": 0.1, "atLeast": None},
            {"flag": "in1k"},
            {"flag": "english", "equals": False, "score": None},
        ],
    },
    "faces to blur": {"spec.columns": [*COLUMNS, *SCREENS], "spec.trainingSets": {"blur": ["faces", "yunet"]}},
    "nothing to drop or to blur": {"spec.drop": [], "spec.trainingSets": {}},
    "nulls of what is dropped and blurred": {"spec.drop": None, "spec.trainingSets": {"blur": None}},
    "nulls of a column's other kinds": {"spec.columns": [*COLUMNS, {**SCREENS[0], "faces": None, "basic": None}]},
    "tables of URLs": {"spec.pool": URLS},
    "a dump": {"spec.pool": CRAWL},
    "the newest dump, all of it": {"spec.pool": {"name": "medium", "commonCrawl": {"dump": "latest"}}},
    "everything of a dump": {
        "spec.pool": {
            "name": "medium",
            "commonCrawl": {
                **{"dump": "cc-main-2026-43", "files": "warc", "sample": 100.0, "seed": 2**32 - 1},
                **{"base": "http://mirror.example/cc", "index": "gs://bucket/dumps"},
            },
        }
    },
    "a dump in a bucket": {"spec.pool": CRAWL, "spec.pool.commonCrawl.base": "s3://commoncrawl"},
    "nulls of a pool's other sources": {
        "spec.pool": {
            "name": "medium",
            "shards": None,
            "urls": "gs://bucket/x.csv",
            "commonCrawl": None,
            "subset": None,
        },
        "spec.download": None,
    },
    "nulls of a dump and of a download": {
        "spec.pool": {"name": "medium", "commonCrawl": {"dump": "latest", "sample": None, "base": None}},
        "spec.download": {"contact": None, "retry": None, "allowNetworks": None, "timeout": None},
    },
    "a download by defaults": {"spec.pool": URLS, "spec.download": {}},
    "everything of a download": {"spec.pool": CRAWL, "spec.download": DOWNLOAD},
    "a download at its limits": {
        "spec.pool": URLS,
        "spec.download": {
            **{"perHostRate": 10_000, "connectTimeout": 0.1, "readTimeout": 600, "retries": 10, "maxBytes": 1024.0},
            **{"retry": ["transient"] * 8, "allowNetworks": [], "contact": "x" * 200},
        },
    },
    "no networks, said": {"spec.pool": URLS, "spec.download": {"allowNetworks": []}},
    "a seed of 32 bits": {"spec.train.seed": 2**32 - 1, "spec.columns.0.caption.seed": 1},
    "read back from a cluster": {"metadata.labels": None, "status": {"phase": "Running"}},
}

RULES0, WHERE0 = "spec.mixtures.0.rules.0", "spec.mixtures.0.rules.0.where.0"
AT0, AT2 = "spec.mixtures[0].rules[0].where[0]", "spec.mixtures[0].rules[2]"
TEXT = "expected a text, {concat: [A, B]} or {bestOf: [A, B]}"

BAD_CHANGES: list[tuple[str, dict[str, Any], str, str]] = [
    # wrong types, and nothing is converted
    ("a number as a text", {"spec.columns.0.caption.topK": "50"}, SCHEMA, "spec.columns[0].caption.topK: found \"50\""),
    ("a truth as a number", {"spec.columns.0.caption.topK": True}, SCHEMA, "spec.columns[0].caption.topK: found true"),
    ("half a whole number", {"spec.columns.0.caption.topK": 50.5}, SCHEMA, "spec.columns[0].caption.topK: found 50.5"),
    ("a share as a text", {f"{WHERE0}.top": "30%"}, SCHEMA, f"{AT0}.top: found \"30%\""),
    ("a share as a truth", {f"{WHERE0}.top": True}, SCHEMA, f"{AT0}.top: found true"),
    ("a text as a number", {"spec.scorer": {"model": 5}}, SCHEMA, "spec.scorer.model: found 5"),
    ("a name as a number", {"spec.pool.name": 1000.0}, SCHEMA, "spec.pool.name: found 1000.0"),
    ("a truth as a text", {"spec.compute.pools.0.spot": "yes"}, SCHEMA, "spec.compute.pools[0].spot: found \"yes\""),
    ("a truth as 1", {"spec.suspend": 1}, SCHEMA, "spec.suspend: found 1"),
    ("a list as an object", {"spec.columns": {}}, SCHEMA, "spec.columns: found {}"),
    ("an object as a list", {"spec.pool": []}, SCHEMA, "spec.pool: found []"),
    ("an object as a text", {"spec.train": "medium"}, SCHEMA, "spec.train: found \"medium\""),
    ("a label as a number", {"spec.compute.pools.0.nodeSelector": {"a": 1}}, SCHEMA,
     "spec.compute.pools[0].nodeSelector.a: found 1"),
    ("a null in a list", {"spec.evaluate.tasks": ["a", None]}, SCHEMA, "spec.evaluate.tasks[1]: found null"),
    ("a null condition", {f"{RULES0}.where": [None]}, SCHEMA, "spec.mixtures[0].rules[0].where[0]: found null"),
    # unknown and missing keys
    ("an unknown key", {"spec.trian": {}}, SCHEMA, "spec.trian: unknown key; allowed are storage, pool, scorer"),
    ("an unknown key that is null", {"spec.trian": None}, SCHEMA, "spec.trian: unknown key"),
    ("an unknown key of a pool", {"spec.pool.url": "x"}, SCHEMA, "spec.pool.url: unknown key; allowed are name"),
    ("an unknown key of a dump", {"spec.pool": CRAWL, "spec.pool.commonCrawl.wat": 1}, SCHEMA,
     "spec.pool.commonCrawl.wat: unknown key; allowed are dump, files, sample, seed, base, index"),
    ("an unknown key of a download", {"spec.pool": URLS, "spec.download": {"retires": 1}}, SCHEMA,
     "spec.download.retires: unknown key; allowed are contact, connections"),
    ("no dump", {"spec.pool": {"name": "medium", "commonCrawl": {}}}, SCHEMA, "spec.pool.commonCrawl.dump: missing"),
    ("an unknown key of a condition", {f"{WHERE0}.tpo": 0.3}, SCHEMA, f"{AT0}.tpo: unknown key; allowed are score"),
    ("an unknown key of a rule", {f"{RULES0}.when": []}, SCHEMA, "spec.mixtures[0].rules[0].when: unknown key"),
    ("an unknown batch size", {"spec.compute.batchSize": {"mix": 1}}, SCHEMA, "spec.compute.batchSize.mix: unknown"),
    ("a key as Python writes it", {"spec.columns.0.caption.top_k": 5}, SCHEMA,
     "spec.columns[0].caption.top_k: unknown key"),
    ("no storage", {"spec.storage": GONE}, SCHEMA, "spec.storage: missing"),
    ("a null storage", {"spec.storage": None}, SCHEMA, "spec.storage: missing"),
    ("no pool", {"spec.pool": GONE}, SCHEMA, "spec.pool: missing"),
    ("no mixtures", {"spec.mixtures": GONE}, SCHEMA, "spec.mixtures: missing"),
    ("no spec", {"spec": GONE}, SCHEMA, "spec: missing"),
    ("no text", {f"{RULES0}.text": GONE}, SCHEMA, "spec.mixtures[0].rules[0].text: missing"),
    ("no model", {"spec.columns.0.caption.model": GONE}, SCHEMA, "spec.columns[0].caption.model: missing"),
    ("no root", {"spec.evaluate.root": GONE}, SCHEMA, "spec.evaluate.root: missing"),
    # values
    ("no share", {f"{WHERE0}.top": 0}, SCHEMA, f"{AT0}.top: found 0: Input should be greater than 0"),
    ("more than all", {f"{WHERE0}.top": 1.1}, SCHEMA, f"{AT0}.top: found 1.1: Input should be less than or equal"),
    ("no mixture", {"spec.mixtures": []}, SCHEMA, "spec.mixtures: found []: List should have at least 1 item"),
    ("no rule", {"spec.mixtures.0.rules": []}, SCHEMA, "spec.mixtures[0].rules: found []: List should have"),
    ("201 mixtures", {"spec.mixtures": mixtures(201), "spec.train": {}}, SCHEMA, "spec.mixtures: found "),
    ("65 rules", {"spec.mixtures": mixtures(1, 65), "spec.train": {}}, SCHEMA, "spec.mixtures[0].rules: found "),
    ("17 conditions", {f"{RULES0}.where": [{"score": "raw", "top": 0.5}] * 17}, SCHEMA,
     "spec.mixtures[0].rules[0].where: found "),
    ("257 tasks", {"spec.evaluate.tasks": ["a"] * 257}, SCHEMA, "spec.evaluate.tasks: found "),
    ("no tasks", {"spec.evaluate.tasks": []}, SCHEMA, "spec.evaluate.tasks: found []"),
    ("another word for tasks", {"spec.evaluate.tasks": "imagenet"}, SCHEMA, "spec.evaluate.tasks: found \"imagenet\""),
    ("a cold captioner", {"spec.columns.0.caption.temperature": 0}, SCHEMA,
     "spec.columns[0].caption.temperature: found 0"),
    ("a hot captioner", {"spec.columns.0.caption.temperature": 11}, SCHEMA,
     "spec.columns[0].caption.temperature: found 11"),
    ("a seed below 0", {"spec.train.seed": -1}, SCHEMA, "spec.train.seed: found -1"),
    ("a seed of 33 bits", {"spec.train.seed": 2**32}, SCHEMA, "spec.train.seed: found 4294967296"),
    ("a number beyond 64 bits", {"spec.pool.subset.shards": 10**20}, SCHEMA, "spec.pool.subset.shards: found 1000"),
    ("an empty subset", {"spec.pool.subset.shards": 0}, SCHEMA, "spec.pool.subset.shards: found 0"),
    ("no pods", {"spec.compute.pools.0.parallelism": 0}, SCHEMA, "spec.compute.pools[0].parallelism: found 0"),
    ("memory in words", {"spec.compute.pools.0.memory": "lots"}, SCHEMA, "spec.compute.pools[0].memory: found \"lo"),
    ("a device without a domain", {"spec.compute.pools.1.accelerator": {"resource": "gpu"}}, SCHEMA,
     "spec.compute.pools[1].accelerator.resource: found \"gpu\""),
    ("a label that is none", {"spec.compute.pools.0.nodeSelector": {"a": "b c"}}, SCHEMA,
     "spec.compute.pools[0].nodeSelector.a: found \"b c\""),
    ("another kind of column", {"spec.columns.1.import.as": "number"}, SCHEMA,
     "spec.columns[1].import.as: found \"number\""),
    ("another kind of filter", {"spec.columns.4.language.is": "fr"}, SCHEMA,
     "spec.columns[4].language.is: found \"fr\""),
    ("another emit", {"spec.mixtures.0.emit": "last"}, SCHEMA, "spec.mixtures[0].emit: found \"last\""),
    ("another effect", {"spec.compute.pools.1.tolerations.0.effect": "Never"}, SCHEMA,
     "spec.compute.pools[1].tolerations[0].effect: found \"Never\""),
    ("a dump of no week", {"spec.pool": CRAWL, "spec.pool.commonCrawl.dump": "CC-MAIN-2026"}, SCHEMA,
     "spec.pool.commonCrawl.dump: found \"CC-MAIN-2026\""),
    ("the dump of a schedule", {"spec.pool": CRAWL, "spec.pool.commonCrawl.dump": "{dump}"}, SCHEMA,
     "spec.pool.commonCrawl.dump: found \"{dump}\""),
    ("other files of a dump", {"spec.pool": CRAWL, "spec.pool.commonCrawl.files": "wet"}, SCHEMA,
     "spec.pool.commonCrawl.files: found \"wet\""),
    ("no files of a dump", {"spec.pool": CRAWL, "spec.pool.commonCrawl.sample": 0}, SCHEMA,
     "spec.pool.commonCrawl.sample: found 0"),
    ("no connections", {"spec.pool": URLS, "spec.download": {"connections": 0}}, SCHEMA,
     "spec.download.connections: found 0"),
    ("no requests", {"spec.pool": URLS, "spec.download": {"perHostRate": 0}}, SCHEMA,
     "spec.download.perHostRate: found 0"),
    ("no time", {"spec.pool": URLS, "spec.download": {"timeout": 0}}, SCHEMA, "spec.download.timeout: found 0"),
    ("too much time", {"spec.pool": URLS, "spec.download": {"readTimeout": 601}}, SCHEMA,
     "spec.download.readTimeout: found 601"),
    ("few bytes", {"spec.pool": URLS, "spec.download": {"maxBytes": 1023}}, SCHEMA,
     "spec.download.maxBytes: found 1023"),
    ("11 retries", {"spec.pool": URLS, "spec.download": {"retries": 11}}, SCHEMA, "spec.download.retries: found 11"),
    ("another round", {"spec.pool": URLS, "spec.download": {"retry": ["none"]}}, SCHEMA,
     "spec.download.retry[0]: found \"none\""),
    ("nine rounds", {"spec.pool": URLS, "spec.download": {"retry": ["all"] * 9}}, SCHEMA,
     "spec.download.retry: found "),
    ("robots in words", {"spec.pool": URLS, "spec.download": {"robots": "yes"}}, SCHEMA,
     "spec.download.robots: found \"yes\""),
    ("a long contact", {"spec.pool": URLS, "spec.download": {"contact": "x" * 201}}, SCHEMA,
     "spec.download.contact: found "),
    ("another scale", {"spec.train.scale": "big"}, SCHEMA, "spec.train.scale: found \"big\""),
    ("an empty model", {"spec.columns.0.caption.model": ""}, SCHEMA, "spec.columns[0].caption.model: found \"\""),
    ("an empty scorer", {"spec.scorer": {"weights": ""}}, SCHEMA, "spec.scorer.weights: found \"\""),
    ("a long address", {"spec.storage": "/" + "x" * 1024}, SCHEMA, "spec.storage: found "),
    ("a name in capitals", {"spec.mixtures.0.name": "Raw"}, SCHEMA, "spec.mixtures[0].name: found \"Raw\""),
    ("a name of 64", {"spec.pool.name": "n" * 64}, SCHEMA, "spec.pool.name: found "),
    ("a pool with {dump}", {"spec.pool.name": "cc-{dump}"}, SCHEMA, "spec.pool.name: found \"cc-{dump}\""),
    # names of the object
    ("an object's name of 64", {"metadata.name": "n" * 64}, RULE, "metadata.name: found "),
    ("an object's name in capitals", {"metadata.name": "Base"}, RULE, "metadata.name: found \"Base\""),
    ("an object's name with two dots", {"metadata.name": "a..b"}, RULE, "metadata.name: found \"a..b\""),
    ("an object's name with a dash after a dot", {"metadata.name": "a.-b"}, RULE, "metadata.name: found \"a.-b\""),
    ("no name", {"metadata": {}}, RULE, "metadata.name: missing"),
    ("an unknown key of the metadata", {"metadata.lables": {}}, RULE, "metadata: found "),
    ("a label's value as a number", {"metadata.labels": {"a": 1}}, RULE, "metadata.labels.a: found 1"),
    ("another API", {"apiVersion": "recaption.dev/v2"}, RULE, "apiVersion: found \"recaption.dev/v2\""),
    ("another kind", {"kind": "Caption"}, RULE, "kind: found \"Caption\""),
    # addresses
    ("a storage on the web", {"spec.storage": "https://bucket"}, RULE, "spec.storage: found \"https://bucket\": "),
    ("a storage without a bucket", {"spec.storage": "gs://"}, RULE, "spec.storage: found \"gs://\": has no bucket"),
    ("one slash too few", {"spec.storage": "gs:/bucket"}, RULE, "spec.storage: found \"gs:/bucket\": expected gs://"),
    ("shards in a hdfs", {"spec.pool.shards": "hdfs://x"}, RULE, "spec.pool.shards: found \"hdfs://x\": scheme"),
    ("shards without a bucket", {"spec.pool.shards": "s3:///x"}, RULE, "spec.pool.shards: found \"s3:///x\": has no"),
    ("tables on the web", {"spec.pool": {"name": "medium", "urls": "https://x/y.csv"}}, RULE,
     "spec.pool.urls: found \"https://x/y.csv\": scheme"),
    ("a dump by FTP", {"spec.pool": CRAWL, "spec.pool.commonCrawl.base": "ftp://mirror/cc"}, RULE,
     "spec.pool.commonCrawl.base: found \"ftp://mirror/cc\": scheme"),
    ("a dump on no host", {"spec.pool": CRAWL, "spec.pool.commonCrawl.base": "https:///cc"}, RULE,
     "spec.pool.commonCrawl.base: found \"https:///cc\": "),
    ("tasks on the web", {"spec.evaluate.root": "http://x"}, RULE, "spec.evaluate.root: found \"http://x\": scheme"),
    ("a column on the web", {"spec.columns.1.import.from": "http://x"}, RULE,
     "spec.columns[1].import.from: found \"http://x\""),
    # one value against another
    ("no source", {"spec.pool": {"name": "medium"}}, RULE,
     "spec.pool: found {\"name\": \"medium\"}: give exactly one of `shards`, `urls` and `commonCrawl`"),
    ("null sources", {"spec.pool": {"name": "medium", "shards": None, "urls": None}}, RULE, "spec.pool: found {"),
    ("shards and tables", {"spec.pool.urls": "/data/x.csv"}, RULE, "spec.pool: found {"),
    ("shards and a dump", {"spec.pool.commonCrawl": {"dump": "latest"}}, RULE, "spec.pool: found {"),
    ("tables and a dump", {"spec.pool": {**URLS, **CRAWL}}, RULE, "spec.pool: found {"),
    ("some of tables", {"spec.pool": {**URLS, "subset": {"shards": 1}}}, RULE, "spec.pool: found {"),
    ("some of a dump", {"spec.pool": {**CRAWL, "subset": {"shards": 1}}}, RULE, "spec.pool: found {"),
    ("a download of shards", {"spec.download": {}}, RULE,
     "spec.download: there is nothing to download, spec.pool has shards"),
    ("a contact with a space", {"spec.pool": URLS, "spec.download": {"contact": "me there"}}, RULE,
     "spec.download.contact: found \"me there\": expected an address of a page or a mailbox, without spaces"),
    ("a contact with a parenthesis", {"spec.pool": URLS, "spec.download": {"contact": "a)b"}}, RULE,
     "spec.download.contact: found \"a)b\""),
    ("a contact with an accent", {"spec.pool": URLS, "spec.download": {"contact": "m\u00e9@x"}}, RULE,
     "spec.download.contact: found "),
    ("a contact of two lines", {"spec.pool": URLS, "spec.download": {"contact": "a\nb"}}, RULE,
     "spec.download.contact: found "),
    ("a contact with a line's end", {"spec.pool": URLS, "spec.download": {"contact": "a\n"}}, RULE,
     "spec.download.contact: found "),
    ("an empty contact", {"spec.pool": URLS, "spec.download": {"contact": ""}}, RULE,
     "spec.download.contact: found \"\""),
    ("minLength above maxLength", {"spec.columns.0.caption.minLength": 41}, RULE, "spec.columns[0].caption: found "),
    ("a .npy with a field", {"spec.columns.3.import.field": "x"}, RULE, "spec.columns[3].import: found "),
    ("a parquet without a field", {"spec.columns.1.import.field": GONE}, RULE, "spec.columns[1].import: found "),
    ("a .npy of scores", {"spec.columns.3.import.as": "score"}, RULE, "spec.columns[3].import: found "),
    ("english with wnids", {"spec.columns.4.language.wnids": "/x"}, SCHEMA,
     "spec.columns[4].language.wnids: unknown key; allowed are model, is"),
    ("imagenet21k without wnids", {"spec.columns.5.imagenet21k.wnids": GONE}, SCHEMA,
     "spec.columns[5].imagenet21k.wnids: missing"),
    ("a column of no kind", {"spec.columns.4.language": GONE}, RULE, "spec.columns[4]: found "),
    ("a column of two kinds", {"spec.columns.4.basic": {}}, RULE, "spec.columns[4]: found "),
    ("a column of an unknown kind", {"spec.columns.4.french": {}}, SCHEMA,
     "spec.columns[4].french: unknown key; allowed are name, aesthetic, basic"),
    ("Exists with a value", {"spec.compute.pools.1.tolerations.0.value": "x"}, RULE,
     "spec.compute.pools[1].tolerations[0]: found "),
    ("Equal without a key", {"spec.compute.pools.1.tolerations": [{"value": "x"}]}, RULE,
     "spec.compute.pools[1].tolerations[0]: found "),
    ("a bad key of a label", {"spec.compute.pools.0.nodeSelector": {"a b": "c"}}, RULE,
     "spec.compute.pools[0].nodeSelector.a b.[key]: found \"a b\""),
    ("evaluation without training", {"spec.train": GONE}, RULE, "spec.evaluate: there is nothing to evaluate without"),
    ("evaluation with a null training", {"spec.train": None}, RULE, "spec.evaluate: there is nothing to evaluate"),
    ("a score and a flag", {f"{WHERE0}.flag": "english"}, RULE, f"{AT0}.flag: unknown key; allowed are score"),
    ("neither a score nor a flag", {WHERE0: {"top": 0.3}}, RULE, f"{AT0}: found {{\"top\": 0.3}}: expected {{s"),
    ("an empty condition", {WHERE0: {}}, RULE, f"{AT0}: found {{}}: expected {{score: …}} or {{flag: …}}"),
    ("a share of a flag", {WHERE0: {"flag": "english", "top": 0.3}}, RULE, f"{AT0}.top: unknown key; allowed are"),
    ("a score that equals", {f"{WHERE0}.equals": True}, RULE, f"{AT0}.equals: unknown key; allowed are score"),
    # names used twice
    ("a captioner called raw", {"spec.columns.0.name": "raw"}, RULE, "spec.columns[0]: found "),
    ("a filter called raw", {"spec.columns.4.name": "raw"}, RULE, "spec.columns[4]: found "),
    ("two columns of a kind", {"spec.columns.2.name": "l14"}, RULE,
     "spec.columns[2].name: l14 is taken; every name must be used once"),
    ("an import called as a captioner", {"spec.columns.1.name": "blip2"}, RULE, "spec.columns[1].name: blip2 is taken"),
    ("a filter called as an import", {"spec.columns.4.name": "l14"}, RULE, "spec.columns[4].name: l14 is taken"),
    ("two mixtures", {"spec.mixtures": [mixtures(1)[0]] * 2, "spec.train": {}}, RULE,
     "spec.mixtures[1].name: mixture-0 is taken"),
    ("two pools", {"spec.compute.pools.0.name": "a100"}, RULE, "spec.compute.pools[1].name: a100 is taken"),
    ("two rules", {"spec.mixtures.0.rules.3.name": "good"}, OPERATOR,
     "spec.mixtures[0].rules[3].name: good is taken; every name must be used once"),
    # names that don't exist
    ("an unknown training pool", {"spec.compute.train.pool": "b200"}, RULE,
     "spec.compute.train.pool: b200 is no pool with an accelerator; there is a100"),
    ("a training pool without GPUs", {"spec.compute.train.pool": "cpu"}, RULE,
     "spec.compute.train.pool: cpu is no pool with an accelerator; there is a100"),
    ("a training without GPUs on nodes that have some", {"spec.compute.train": {"gpusPerNode": 0, "pool": "a100"}},
     RULE, "spec.compute.train.pool: a100 is no pool without an accelerator; there is cpu"),
    ("a training with GPUs on nodes without", {
        "spec.compute.pools.1.accelerator.count": 0, "spec.compute.train.gpusPerNode": 8,
    }, RULE, "spec.compute.train.pool: a100 is no pool with an accelerator; there is none"),
    ("an unknown mixture", {"spec.train.mixtures.0": "raw"}, RULE, "spec.train.mixtures[0]: raw is no mixture"),
    ("an unknown text", {"spec.mixtures.0.rules.1.text": "blip"}, OPERATOR,
     "spec.mixtures[0].rules[1].text: blip is no text; there is raw, blip2, published"),
    ("a score as a text", {"spec.mixtures.0.rules.1.text": "l14"}, OPERATOR,
     "spec.mixtures[0].rules[1].text: l14 is no text; there is raw, blip2, published"),
    ("an unknown text among others", {"spec.mixtures.0.rules.2.text": {"concat": ["raw", "blip"]}}, OPERATOR,
     f"{AT2}.text: blip is no text; there is raw, blip2, published"),
    ("an unknown best text", {"spec.mixtures.0.rules.2.text": {"bestOf": ["raw", "blip"]}}, OPERATOR,
     f"{AT2}.text: blip is no text; there is raw, blip2, published"),
    ("an unknown score", {f"{WHERE0}.score": "b"}, OPERATOR, f"{AT0}.score: b is no score; there is raw, blip2"),
    ("a flag as a score", {f"{WHERE0}.score": "in1k"}, OPERATOR, f"{AT0}.score: in1k is no score; there is raw, blip2"),
    ("an unknown flag", {"spec.mixtures.0.rules.0.where.1.flag": "french"}, OPERATOR,
     "spec.mixtures[0].rules[0].where[1].flag: french is no flag; there is in1k, english, in21k"),
    ("an unknown flag where there is none", {
        "spec.columns": GONE, "spec.mixtures": [
            {"name": "raw30-blip2", "rules": [{"text": "raw", "where": [{"flag": "english"}]}]}]}, OPERATOR,
     f"{AT0}.flag: english is no flag; there is none"),
    ("an unknown rule", {"spec.mixtures.0.rules.1.where.0.atLeast": {"rule": "bad"}}, OPERATOR,
     "spec.mixtures[0].rules[1].where[0].atLeast.rule: bad is no rule with a `top` condition; there is good"),
    ("a rule without a share", {"spec.mixtures.0.rules.1.where.0.atLeast": {"rule": "rest"}}, OPERATOR,
     "spec.mixtures[0].rules[1].where[0].atLeast.rule: rest is no rule with a `top` condition; there is good"),
    ("the 200th mixture's text", {"spec.mixtures": [*mixtures(199), *mixtures(1, 2, "blip")], "spec.train": {},
                                  "spec.mixtures.199.name": "last"}, OPERATOR,
     "spec.mixtures[199].rules[1].text: blip is no text; there is raw, blip2, published"),
    ("a mistake in 200 mixtures of 64 rules", {"spec.mixtures": mixtures(200, 64, "blip"), "spec.train": {}}, OPERATOR,
     "spec.mixtures[0].rules[1].text: blip is no text"),
    # shapes of what is one thing or another
    ("a share and a threshold", {f"{WHERE0}.atLeast": 0.5}, OPERATOR, f"{AT0}: found "),
    ("neither a share nor a threshold", {f"{WHERE0}.top": GONE}, OPERATOR,
     f"{AT0}: found {{\"score\": \"raw\"}}: give"),
    ("at most and at least at once", {"spec.mixtures.0.rules.0.where.0": {"score": "raw", "top": 0.1, "atMost": 0.5}},
     OPERATOR, f"{AT0}: found "),
    ("at most of a flag", {"spec.mixtures.0.rules.0.where.1": {"flag": "english", "atMost": 0.5}}, RULE,
     "spec.mixtures[0].rules[0].where[1].atMost: unknown key; allowed are flag, equals"),
    ("at most a rule's threshold", {"spec.mixtures.0.rules.1.where.0": {"score": "blip2", "atMost": {"rule": "good"}}},
     SCHEMA, "spec.mixtures[0].rules[1].where[0].atMost: found {\"rule\": \"good\"}"),
    ("a threshold as a text", {f"{AT2.replace('[', '.').replace(']', '')}.where.0.atLeast": "0.25"}, OPERATOR,
     f"{AT2}.where[0].atLeast: found \"0.25\": Input should be a valid number"),
    ("a threshold as a truth", {"spec.mixtures.0.rules.2.where.0.atLeast": True}, OPERATOR,
     f"{AT2}.where[0].atLeast: found true"),
    ("a threshold as a list", {"spec.mixtures.0.rules.2.where.0.atLeast": [1]}, OPERATOR,
     f"{AT2}.where[0].atLeast: found [1]"),
    ("a threshold of nothing", {"spec.mixtures.0.rules.2.where.0.atLeast": {}}, SCHEMA,
     f"{AT2}.where[0].atLeast: found {{}}: expected a number or {{rule: NAME}}"),
    ("a threshold of a null", {"spec.mixtures.0.rules.2.where.0.atLeast": {"rule": None}}, SCHEMA,
     f"{AT2}.where[0].atLeast: found {{\"rule\": null}}: expected a number or {{rule: NAME}}"),
    ("a threshold with more", {"spec.mixtures.0.rules.1.where.0.atLeast": {"rule": "good", "by": 1}}, OPERATOR,
     "spec.mixtures[0].rules[1].where[0].atLeast.by: unknown key; allowed are rule"),
    ("a threshold of a number", {"spec.mixtures.0.rules.1.where.0.atLeast": {"rule": 1}}, SCHEMA,
     "spec.mixtures[0].rules[1].where[0].atLeast.rule: found 1"),
    ("a threshold of a flag", {"spec.mixtures.0.rules.0.where.1.atLeast": 1}, OPERATOR,
     "spec.mixtures[0].rules[0].where[1].atLeast: unknown key; allowed are flag, equals"),
    ("a text in capitals", {f"{RULES0}.text": "RAW"}, SCHEMA, "spec.mixtures[0].rules[0].text: found \"RAW\""),
    ("a text as a number", {f"{RULES0}.text": 5}, OPERATOR, "spec.mixtures[0].rules[0].text: found 5"),
    ("a text as a truth", {f"{RULES0}.text": True}, OPERATOR, "spec.mixtures[0].rules[0].text: found true"),
    ("a text as a list", {f"{RULES0}.text": ["raw"]}, OPERATOR, "spec.mixtures[0].rules[0].text: found [\"raw\"]"),
    ("a text as nothing", {f"{RULES0}.text": {}}, OPERATOR, f"spec.mixtures[0].rules[0].text: found {{}}: {TEXT}"),
    ("a text as a null of nothing", {f"{RULES0}.text": {"concat": None}}, OPERATOR,
     f"spec.mixtures[0].rules[0].text: found {{\"concat\": null}}: {TEXT}"),
    ("a text by a wrong key", {"spec.mixtures.0.rules.2.text": {"conact": ["raw"]}}, OPERATOR,
     f"{AT2}.text: found {{\"conact\": [\"raw\"]}}: {TEXT}"),
    ("a text by both keys", {"spec.mixtures.0.rules.2.text": {"concat": ["raw", "raw"], "bestOf": ["raw", "raw"]}},
     OPERATOR, f"{AT2}.text.bestOf: unknown key; allowed are concat"),
    ("one text joined", {"spec.mixtures.0.rules.2.text": {"concat": ["raw"]}}, SCHEMA, f"{AT2}.text.concat: found "),
    ("nine texts joined", {"spec.mixtures.0.rules.2.text": {"concat": ["raw"] * 9}}, SCHEMA,
     f"{AT2}.text.concat: found "),
    ("a text joined with a number", {"spec.mixtures.0.rules.2.text": {"concat": ["raw", 5]}}, SCHEMA,
     f"{AT2}.text.concat[1]: found 5"),
    ("65 best texts", {"spec.mixtures.0.rules.2.text": {"bestOf": ["raw"] * 65}}, SCHEMA, f"{AT2}.text.bestOf: found "),
    ("a head without weights", screen("imageNsfw"), SCHEMA, "spec.columns[6].imageNsfw.weights: missing"),
    ("weights of an index", screen("duplicates", index="x", weights="y"), SCHEMA,
     "spec.columns[6].duplicates.weights: unknown key; allowed are index"),
    ("a classifier without a label", screen("textNsfw", model="x"), SCHEMA, "spec.columns[6].textNsfw.label: missing"),
    ("faces by a label", screen("faces", label="x"), SCHEMA, "spec.columns[6].faces.label: unknown key"),
    ("an index on the web", screen("duplicates", index="http://x/y.npy"), RULE,
     "spec.columns[6].duplicates.index: found \"http://x/y.npy\""),
    ("a screen of captions", screen("textNsfw", model="x", label="y", text="blip2"), OPERATOR,
     "spec.columns[6].textNsfw.text: blip2 is no text that is there before captions; there is raw, published"),
    ("a screen as a flag", {"spec.columns": [*COLUMNS, SCREENS[0]],
     "spec.mixtures.0.rules.0.where.1": {"flag": "nsfw"}}, OPERATOR,
     "spec.mixtures[0].rules[0].where[1].flag: nsfw is no flag; there is in1k, english, in21k"),
    ("a share to drop as a text", {"spec.drop": [{"score": "raw", "top": "0.9"}]}, SCHEMA,
     "spec.drop[0].top: found \"0.9\""),
    ("an unknown key of what is dropped", {"spec.drop": [{"score": "raw", "above": 0.9}]}, SCHEMA,
     "spec.drop[0].above: unknown key; allowed are score, top, atLeast, atMost"),
    ("a dropped column by two keys", {"spec.drop": [{"score": "l14", "flag": "english"}]}, RULE,
     "spec.drop[0].flag: unknown key; allowed are score"),
    ("a bound of a dropped flag", {"spec.drop": [{"flag": "english", "atMost": 1}]}, RULE,
     "spec.drop[0].atMost: unknown key; allowed are flag, equals"),
    ("17 conditions to drop", {"spec.drop": [{"flag": "english"}] * 17}, SCHEMA, "spec.drop: found "),
    ("an unknown score to drop", {"spec.drop": [{"score": "nsfw", "atLeast": 0.9}]}, OPERATOR,
     "spec.drop[0].score: nsfw is no score that is there before captions; there is raw, published, l14"),
    ("captions' score to drop", {"spec.drop": [{"score": "blip2", "atMost": 0.1}]}, OPERATOR,
     "spec.drop[0].score: blip2 is no score that is there before captions; there is raw, published, l14"),
    ("an unknown flag to drop", {"spec.drop": [{"flag": "rude"}]}, OPERATOR,
     "spec.drop[0].flag: rude is no flag that is there before captions; there is in1k, english, in21k"),
    ("a rule's threshold to drop", {"spec.drop": [{"score": "raw", "atLeast": {"rule": "good"}}]}, OPERATOR,
     "spec.drop[0].atLeast: found the threshold of rule good; `drop` is for all mixtures and knows no rule"),
    ("nothing to blur by", {"spec.trainingSets": {"blur": ["faces"]}}, OPERATOR,
     "spec.trainingSets.blur[0]: faces is no column with boxes; there is none"),
    ("a score to blur by", {"spec.columns": [*COLUMNS, *SCREENS], "spec.trainingSets": {"blur": ["yunet", "nsfw"]}},
     OPERATOR,
     "spec.trainingSets.blur[1]: nsfw is no column with boxes; there is faces, yunet"),
    ("one column to blur by", {"spec.columns": [*COLUMNS, *SCREENS], "spec.trainingSets": {"blur": "faces"}}, SCHEMA,
     "spec.trainingSets.blur: found \"faces\""),
    ("a scale as a number", {"spec.train.scale": 5}, OPERATOR, "spec.train.scale: found 5"),
    ("a scale as a list", {"spec.train.scale": ["small"]}, OPERATOR, "spec.train.scale: found [\"small\"]"),
    ("a scale of nothing", {"spec.train.scale": {}}, SCHEMA, "spec.train.scale: found {}: expected a scale's name or"),
    ("half a scale", {"spec.train.scale": {"model": "x"}}, SCHEMA, "spec.train.scale.batchSize: missing"),
    ("a scale with more", {"spec.train.scale": {**SCALE, "epochs": 5}}, OPERATOR,
     "spec.train.scale.epochs: unknown key; allowed are model, batchSize, learningRate, warmup, samples, beta2"),
    ("a scale with a text", {"spec.train.scale": {**SCALE, "samples": "1e6"}}, SCHEMA,
     "spec.train.scale.samples: found \"1e6\""),
    ("a scale without learning", {"spec.train.scale": {**SCALE, "learningRate": 0}}, SCHEMA,
     "spec.train.scale.learningRate: found 0"),
    ("tasks as an object", {"spec.evaluate.tasks": {"a": "b"}}, OPERATOR, "spec.evaluate.tasks: found {\"a\": \"b\"}"),
    ("tasks as a number", {"spec.evaluate.tasks": 5}, OPERATOR, "spec.evaluate.tasks: found 5"),
    ("a task as a number", {"spec.evaluate.tasks": [5]}, SCHEMA, "spec.evaluate.tasks[0]: found 5"),
]  # fmt: skip

POOL = "spec.template.spec.pool"
DUMPED = {"name": "cc-{dump}", "commonCrawl": {"dump": "{dump}", "sample": 100, "base": "s3://commoncrawl"}}
SCHEDULE_GOOD: dict[str, dict[str, Any]] = {
    "as it is": {},
    "everything": {
        **{"spec.timeZone": "Europe/Zurich", "spec.dumps": "since CC-MAIN-2026-05", "spec.index": "gs://bucket/dumps"},
        **{"spec.concurrencyPolicy": "Replace", "spec.suspend": True, "spec.startingDeadlineSeconds": 3600},
        **{"spec.successfulHistoryLimit": 0, "spec.failedHistoryLimit": 10},
        "spec.template.metadata": {"labels": {"a.example/b": "c"}, "annotations": {"note": "any text: at all"}},
    },
    "nulls": dict.fromkeys(("spec.timeZone", "spec.dumps", "spec.index", "spec.suspend", "spec.template.metadata")),
    "lists, ranges and steps": {"spec.schedule": "*/15 0-6,22 1 JAN-MAR mon"},
    "a dump in the middle": {f"{POOL}.name": "cc-{dump}-en", f"{POOL}.shards": "s3://{dump}"},
    "tables of a dump": {f"{POOL}.shards": GONE, f"{POOL}.urls": "gs://bucket/{dump}.parquet"},
    "a dump": {POOL: DUMPED, "spec.template.spec.download": DOWNLOAD},
    "a dump and nulls": {
        POOL: {**DUMPED, "shards": None, "urls": None, "subset": None},
        "spec.template.spec.download": {"contact": None, "allowNetworks": None},
    },
    "a whole recipe": {
        f"spec.template.spec.{key}": value for key, value in BASE["spec"].items() if key not in ("storage", "pool")
    },
    "a long name": {"metadata.name": "n" * 47},
}
SCHEDULE_BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("no schedule", {"spec.schedule": GONE}, SCHEMA, "spec.schedule: missing"),
    ("six fields", {"spec.schedule": "0 0 6 * * *"}, SCHEMA, "spec.schedule: found \"0 0 6 * * *\""),
    ("four fields", {"spec.schedule": "0 6 * *"}, SCHEMA, "spec.schedule: found \"0 6 * *\""),
    ("words", {"spec.schedule": "@daily"}, SCHEMA, "spec.schedule: found \"@daily\""),
    ("other dumps", {"spec.dumps": "all"}, SCHEMA, "spec.dumps: found \"all\""),
    ("a dump of no week", {"spec.dumps": "since CC-MAIN-2026"}, SCHEMA, "spec.dumps: found \"since CC-MAIN-2026\""),
    ("another policy", {"spec.concurrencyPolicy": "Queue"}, SCHEMA, "spec.concurrencyPolicy: found \"Queue\""),
    ("a limit below 0", {"spec.failedHistoryLimit": -1}, SCHEMA, "spec.failedHistoryLimit: found -1"),
    ("a deadline as a text", {"spec.startingDeadlineSeconds": "1h"}, SCHEMA, "spec.startingDeadlineSeconds: found"),
    ("a zone that is none", {"spec.timeZone": "the moon"}, SCHEMA, "spec.timeZone: found \"the moon\""),
    ("no template", {"spec.template": GONE}, SCHEMA, "spec.template: missing"),
    ("an unknown key", {"spec.cron": "x"}, SCHEMA, "spec.cron: unknown key; allowed are schedule, timeZone"),
    ("a name for the template", {"spec.template.metadata.name": "x"}, SCHEMA, "spec.template.metadata.name: unknown"),
    ("two dumps in a name", {f"{POOL}.name": "{dump}-{dump}"}, SCHEMA, f"{POOL}.name: found \"{{dump}}-{{dump}}\""),
    ("a name of 64 with its dump", {f"{POOL}.name": "n" * 49 + "{dump}"}, SCHEMA, f"{POOL}.name: found"),
    ("no dump in the name", {f"{POOL}.name": "cc"}, RULE, f"{POOL}.name: found cc, without {{dump}}"),
    ("no dump in the shards", {f"{POOL}.shards": "gs://b/x"}, RULE, f"{POOL}.shards: found gs://b/x, without {{dump}}"),
    ("no dump in the tables", {POOL: {"name": "{dump}", "urls": "gs://b/x"}}, RULE,
     f"{POOL}.urls: found gs://b/x, without {{dump}}"),
    ("the latest dump", {POOL: {"name": "{dump}", "commonCrawl": {"dump": "latest"}}}, SCHEMA,
     f"{POOL}.commonCrawl.dump: found \"latest\": Input should be '{{dump}}'"),
    ("one dump", {POOL: {"name": "{dump}", "commonCrawl": {"dump": "CC-MAIN-2026-43"}}}, SCHEMA,
     f"{POOL}.commonCrawl.dump: found \"CC-MAIN-2026-43\": Input should be '{{dump}}'"),
    ("no dump in its name", {POOL: {**DUMPED, "name": "cc"}}, RULE, f"{POOL}.name: found cc, without {{dump}}"),
    ("a dump by FTP", {POOL: DUMPED, f"{POOL}.commonCrawl.base": "ftp://mirror"}, RULE,
     f"{POOL}.commonCrawl.base: found \"ftp://mirror\""),
    ("no source", {f"{POOL}.shards": GONE}, RULE, f"{POOL}: found {{\"name\""),
    ("two sources", {POOL: {**DUMPED, "urls": "{dump}"}}, RULE, f"{POOL}: found {{\"name\""),
    ("some of a dump", {POOL: {**DUMPED, "subset": {"shards": 1}}}, RULE, f"{POOL}: found {{\"name\""),
    ("a download of shards", {"spec.template.spec.download": {}}, RULE,
     "spec.template.spec.download: there is nothing to download, spec.template.spec.pool has shards"),
    ("private networks", {POOL: DUMPED, "spec.template.spec.download": PRIVATE["spec.download"]}, RULE,
     "spec.template.spec.download.allowNetworks: not in a cluster, where the downloader must not reach private"),
    ("a dump in the storage", {"spec.template.spec.storage": "gs://b/{dump}"}, RULE, "spec.template.spec.storage: "),
    ("shards on the web", {f"{POOL}.shards": "http://{dump}"}, RULE, f"{POOL}.shards: found \"http://{{dump"),
    ("a long name", {"metadata.name": "n" * 48}, RULE, "metadata.name: found 48 characters; expected at most 47"),
    ("a bad key of a label", {"spec.template.metadata.labels": {"a b": "c"}}, RULE, "spec.template.metadata.labels"),
    ("evaluation without training", {"spec.template.spec.evaluate": {"root": "/x"}}, RULE,
     "spec.template.spec.evaluate: there is nothing to evaluate without spec.template.spec.train"),
    ("an unknown text", {"spec.template.spec.mixtures.0.rules.0.text": "blip"}, OPERATOR,
     "spec.template.spec.mixtures[0].rules[0].text: blip is no text; there is raw"),
    ("a text as a number", {"spec.template.spec.mixtures.0.rules.0.text": 5}, OPERATOR,
     "spec.template.spec.mixtures[0].rules[0].text: found 5"),
]  # fmt: skip

GOOD = [
    *(case for case in files() if not case.differs),
    *(Case(name, changed(BASE, changes)) for name, changes in GOOD_CHANGES.items()),
    *(Case(f"schedule: {name}", changed(SCHEDULE_BASE, changes)) for name, changes in SCHEDULE_GOOD.items()),
]
BAD = [
    *(Case(name, changed(BASE, changes), says, by) for name, changes, by, says in BAD_CHANGES),
    *(Case(f"schedule: {n}", changed(SCHEDULE_BASE, changes), says, by) for n, changes, by, says in SCHEDULE_BAD),
]

NO_ZONES = "CEL knows neither cron nor time zones: admitted, and refused by the operator at once"
HERE_ONLY = "on this machine the command line takes them; in a cluster no downloader reaches private addresses"
FOLDERS: dict[str, dict[str, Any]] = {
    "a folder": {"spec.storage": "/data/recaption"},
    "a folder of shards": {"spec.pool.shards": "data/shards"},
    "file://": {"spec.storage": "file:///data"},
    "evaluation sets at file://": {"spec.evaluate.root": "file:///tasks"},
    "a folder with a colon": {"spec.pool.shards": "/data/a:b"},
    "tables of URLs in a folder": {"spec.pool": {"name": "medium", "urls": "/data/medium/metadata"}},
    "a dump in a folder": {"spec.pool": CRAWL, "spec.pool.commonCrawl.base": "/mnt/commoncrawl"},
    "scores in a folder": {"spec.columns.1.import.from": "/data/metadata"},
    "a scorer beside the recipe": {"spec.scorer": {"model": "local-dir:./scorer"}},
    "a captioner at home": {"spec.columns.0.caption": {"model": "~/blip2"}},
    "a head beside the recipe": screen("imageNsfw", weights="head.pth"),
}
DIFFERENT = [  # where the two can't agree
    Case("the 31 June", changed(SCHEDULE_BASE, {"spec.schedule": "0 6 31 6 *"}), "spec.schedule: ", differs=NO_ZONES),
    Case("an hour 25", changed(SCHEDULE_BASE, {"spec.schedule": "0 25 * * *"}), "spec.schedule: ", differs=NO_ZONES),
    Case("a zone unknown", changed(SCHEDULE_BASE, {"spec.timeZone": "Mars/X"}), "spec.timeZone: ", differs=NO_ZONES),
    Case(
        "a double in a rule over whole numbers",
        changed(BASE, {"spec.columns.0.caption.minLength": 5.0}),
        differs="CEL takes no 5.0 for a whole number; kubectl, which reads YAML, sends 5",
    ),
    Case("private networks", changed(BASE, PRIVATE), differs=HERE_ONLY),
    Case(
        "a label of the object with a space",
        changed(BASE, {"metadata.labels": {"a": "b c"}}),
        differs="the command line leaves an object's labels to Kubernetes, which refuses this one",
    ),
]
LOCAL = [
    *(case for case in files() if case.differs),
    *(Case(name, changed(BASE, changes), differs=NO_FOLDERS) for name, changes in FOLDERS.items()),
]
"""What the command line takes, and a cluster refuses at admission."""
ADMITTED = [case for case in DIFFERENT if case.says]
REFUSED = [case for case in DIFFERENT if not case.says]

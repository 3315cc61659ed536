"""What a schema's types can't say, as CEL rules in the CRD: the checks of the recipe's models, in the CLI's words.

CEL's cost is estimated for the largest object that the schema admits. What is too dear, and what looks into values
without a structural type, the operator refuses by the condition Accepted=False.
"""

from __future__ import annotations

from typing import Any

from components.recipe.recipe import RAW
from components.recipe.screens import KEYS as SCREEN_KEYS
from components.recipe.screens import TAKES, keys_said
from components.recipe.types import LONGEST_NAME
from pipelines.kubeflow.parameters import NOT_HERE

Rule = dict[str, Any]

ADDRESS: Rule = {
    "rule": "self.contains('://') ? self.matches('^(file://|(gs|s3)://[^/])') : !self.matches('^(gs|s3):')",
    "message": "expected a folder, gs://bucket/path or s3://bucket/path",
}
SOURCE: Rule = {
    "rule": f"self.matches('^https?://[^/]') || ({ADDRESS['rule']})",
    "message": "expected https://…, a folder, gs://bucket/path or s3://bucket/path",
}
NO_NETWORKS: Rule = {"rule": "size(self) == 0", "message": NOT_HERE}
ONE_SOURCE: list[Rule] = [
    {
        "rule": "[has(self.shards), has(self.urls), has(self.commonCrawl)].exists_one(x, x)",
        "message": "give exactly one of `shards`, `urls` and `commonCrawl`",
    },
    {
        "rule": "!has(self.subset) || has(self.shards)",
        "message": "`subset` takes some of `shards`; of what is downloaded take fewer files",
    },
]
NOT_RAW: Rule = {"rule": f"self != '{RAW}'", "message": f"{RAW} is taken; every name must be used once"}


def taken(in_list: str, by: str) -> Rule:
    """A name of one list that another list has. (To name it would be estimated as too dear.)"""
    clash = f"self.{in_list}.exists(a, self.{by}.exists(b, a.name == b.name))"
    return {
        "rule": f"!has(self.{in_list}) || !has(self.{by}) || !{clash}",
        "message": f"a name is taken by one of spec.{by}; every name must be used once",
        "fieldPath": f".{in_list}",
    }


def screen_keys(kind: str) -> Rule:
    """Which keys a screen of this kind has and may have."""
    needs, may = TAKES[kind]
    said = [f"has(self.{key})" for key in needs]
    said += ["!self.blur" if key == "blur" else f"!has(self.{key})" for key in SCREEN_KEYS if key not in (*needs, *may)]
    return {"rule": f"self.kind != '{kind}' || ({' && '.join(said)})", "message": keys_said(kind)}


def immutable(what: str, remedy: str) -> Rule:
    return {"rule": "self == oldSelf", "message": f"{what} can't be changed; {remedy}"}


def longest_name(longest: int = LONGEST_NAME) -> Rule:
    return {
        "rule": f"size(self.metadata.name) <= {longest}",
        "message": f"metadata.name: expected at most {longest} characters",
    }


RULES: dict[str, list[Rule]] = {
    "Captioner.name": [NOT_RAW],
    "Captioner": [
        {
            "rule": "self.minLength <= self.maxLength",
            "message": "minLength is above maxLength",
        }
    ],
    "ImportedColumn.name": [NOT_RAW],
    "ImportedColumn.from": [ADDRESS],
    "ImportedColumn": [
        {
            "rule": "self.from.endsWith('.npy') != has(self.field)",
            "message": "a .npy lists uids and has no field; a parquet or CSV needs `field`, the name of its value",
        },
        {
            "rule": "!self.from.endsWith('.npy') || self.kind == 'flag'",
            "message": "a .npy lists uids, so its kind must be flag",
        },
    ],
    "Filter.name": [NOT_RAW],
    "Filter": [
        {
            "rule": (
                "self.kind == 'imagenet21k' ? has(self.wordnet) && has(self.wnids) : "
                "!has(self.wordnet) && !has(self.wnids)"
            ),
            "message": "kind imagenet21k needs `wordnet` and `wnids`, the others have neither",
        }
    ],
    "Screen.name": [NOT_RAW],
    "Screen.index": [ADDRESS],
    "Screen": [screen_keys(kind) for kind in TAKES],
    "ScoreCondition|FlagCondition": [
        {"rule": "has(self.score) != has(self.flag)", "message": "expected {score: …} or {flag: …}"},
        {
            "rule": "has(self.flag) ? !has(self.top) && !has(self.atMost) : !has(self.equals)",
            "message": "`top`, `atLeast` and `atMost` go with a score, `equals` with a flag",
        },
    ],
    "Toleration": [
        {"rule": "self.operator != 'Exists' || !has(self.value)", "message": "operator Exists has no value"},
        {"rule": "self.operator != 'Equal' || has(self.key)", "message": "operator Equal needs a key"},
    ],
    "Compute": [
        {
            "rule": (
                "!has(self.train) || !has(self.train.pool) || (has(self.pools) && self.pools.exists(p, "
                "p.name == self.train.pool && (!has(self.train.gpusPerNode) ? has(p.accelerator) : "
                "(has(p.accelerator) && p.accelerator.count > 0) == (self.train.gpusPerNode > 0))))"
            ),
            "message": "it is no pool with an accelerator, or with gpusPerNode 0 none without one",
            "messageExpression": (
                "self.train.pool + ' is no pool with' + "
                "(has(self.train.gpusPerNode) && self.train.gpusPerNode == 0 ? 'out' : '') + ' an accelerator'"
            ),
            "fieldPath": ".train.pool",
        }
    ],
    "Pool": ONE_SOURCE,
    "Pool.shards": [ADDRESS],
    "Pool.urls": [ADDRESS],
    "CommonCrawl.base": [SOURCE],
    "Download.contact": [
        {
            "rule": """self.matches("^[!-'*-~]+$")""",
            "message": "expected an address of a page or a mailbox, without spaces and parentheses",
        }
    ],
    "Download.allowNetworks": [NO_NETWORKS],
    "Evaluate.root": [ADDRESS],
    "Spec.storage": [ADDRESS],
    "Spec": [
        taken("columns", "captioners"),
        taken("filters", "captioners"),
        taken("filters", "columns"),
        taken("screens", "captioners"),
        taken("screens", "columns"),
        taken("screens", "filters"),
        {
            "rule": (
                f"!has(self.screens) || self.screens.all(s, !has(s.text) || s.text == '{RAW}' || "
                "(has(self.columns) && self.columns.exists(c, c.kind == 'text' && c.name == s.text)))"
            ),
            "message": "a screen's text is no text that is there before captions",
            "fieldPath": ".screens",
        },
        {
            "rule": (
                "!has(self.train) || !has(self.train.mixtures) || "
                "self.train.mixtures.all(t, self.mixtures.exists(m, m.name == t))"
            ),
            "message": "there is a name that is no mixture",
            "messageExpression": (
                "self.train.mixtures.filter(t, !self.mixtures.exists(m, m.name == t))[0] + ' is no mixture'"
            ),
            "fieldPath": ".train.mixtures",
        },
        {
            "rule": "!has(self.evaluate) || has(self.train)",
            "message": "there is nothing to evaluate without spec.train",
            "fieldPath": ".evaluate",
        },
        {
            "rule": "!has(self.download) || !has(self.pool.shards)",
            "message": "there is nothing to download, spec.pool has shards",
            "fieldPath": ".download",
        },
    ],
}
"""By model, or by model and key, as schema.structural takes them."""

CHANGES: dict[str, list[Rule]] = {
    "Spec.storage": [immutable("spec.storage", "make another Recaption")],
    "Spec.pool": [immutable("spec.pool", "make another Recaption")],
    "Compute.shardsPerTask": [immutable("spec.compute.shardsPerTask", "a run keeps its number of tasks")],
}
"""What may not be changed in a Recaption; in a schedule's template all may, for the dumps to come."""

OF_A_DUMP: Rule = {
    "rule": "self.contains('{dump}')",
    "message": "found it without {dump}; every dump is a pool of its own",
}
TEMPLATE: dict[str, list[Rule]] = {
    "TemplatePool": ONE_SOURCE,
    "TemplatePool.name": [OF_A_DUMP],
    "TemplatePool.shards": [ADDRESS, OF_A_DUMP],
    "TemplatePool.urls": [ADDRESS, OF_A_DUMP],
    "TemplateCommonCrawl.base": [SOURCE],
    "TemplateSpec.storage": [
        ADDRESS,
        {"rule": "!self.contains('{dump}')", "message": "found {dump} in it; a schedule's runs share one storage"},
    ],
    "TemplateSpec": RULES["Spec"],
}
"""Of a schedule's template."""


def joined(*tables: dict[str, list[Rule]]) -> dict[str, list[Rule]]:
    """One table; the rules of a key that several have follow each other."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: [rule for table in tables for rule in table.get(key, ())] for key in keys}

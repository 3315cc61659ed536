"""What a schema's types can't say, as CEL rules in the CRD: the checks of the recipe's models, in the CLI's words.

CEL's cost is estimated for the largest object that the schema admits. What is too dear, and what looks into values
without a structural type, the operator refuses by the condition Accepted=False.
"""

from __future__ import annotations

from typing import Any

from components.recipe.columns import RAW, kinds
from components.recipe.conditions import SUBJECTS, comparisons_about, listed
from components.recipe.types import LONGEST_NAME, is_address, outside_of
from pipelines.kubeflow.parameters import IN_A_BUCKET, NOT_HERE

Rule = dict[str, Any]

ADDRESS: Rule = {"rule": "self.matches('^(gs|s3)://[^/]')", "message": IN_A_BUCKET}
SOURCE: Rule = {
    "rule": "self.matches('^(https?|gs|s3)://[^/]')",
    "message": "expected https://…, gs://bucket/path or s3://bucket/path; a cluster's pods share no folder",
}
IN_THE_IMAGE: dict[str, Rule] = {
    "model": {
        "rule": "!self.matches('^(local-dir:)?[.~]')",
        "message": "expected a model's name, gs://… or s3://…, or the absolute path of a folder or file in the image",
    },
    "path": {
        "rule": "self.matches('^(/|(gs|s3)://[^/])')",
        "message": "expected gs://… or s3://…, or the absolute path of a folder or file in the image",
    },
}
"""By what a key names outside the storage: a relative path would be the image's working directory's."""
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
NAMED = (("Scorer", "model"), ("Scorer", "weights"), ("ScaleConfig", "model"))  # models, beside those of columns
RESERVED = ("as", "import", "in", "package", "namespace")  # of CEL's words, those that a key of ours could be


def cel_name(key: str) -> str:
    """Return how a key is written in a rule: Kubernetes escapes CEL's reserved words."""
    return f"__{key}__" if key in RESERVED else key


def column_rules() -> dict[str, list[Rule]]:
    """Return the rules of a recipe's columns: one kind for each, and what the kinds declare about their options."""
    given = ", ".join(f"has(self.{cel_name(kind)})" for kind in kinds())
    one: Rule = {"rule": f"[{given}].exists_one(x, x)", "message": f"give exactly one of {', '.join(kinds())}"}
    rules = {"Column": [one], "Column.name": [NOT_RAW]}
    for options in kinds().values():
        if options.checks:
            rules[options.__name__] = [{"rule": rule, "message": message} for rule, message in options.checks]
        for name, declared in options.model_fields.items():
            what, key = outside_of(declared), f"{options.__name__}.{declared.alias or name}"
            if is_address(declared):
                rules[key] = [ADDRESS]
            elif what:
                rules[key] = [IN_THE_IMAGE[what]]
    return rules


def keys_of_conditions() -> Rule:
    """Refuse a score's keys in a condition on a flag, and the other way. (A key that may be {rule: …} has no type.)"""
    keys = {about: [c.key for c in comparisons_about(about)] for about in SUBJECTS}
    absent = {
        about: " && ".join(f"!has(self.{c.key})" for c in comparisons_about(about) if not c.borrows)
        for about in SUBJECTS
    }
    return {
        "rule": f"has(self.flag) ? {absent['score']} : {absent['flag']}",
        "message": f"{listed(keys['score'])} go with a score, {listed(keys['flag'])} with a flag",
    }


def immutable(what: str, remedy: str) -> Rule:
    return {"rule": "self == oldSelf", "message": f"{what} can't be changed; {remedy}"}


def longest_name(longest: int = LONGEST_NAME) -> Rule:
    return {
        "rule": f"size(self.metadata.name) <= {longest}",
        "message": f"metadata.name: expected at most {longest} characters",
    }


RULES: dict[str, list[Rule]] = {
    **column_rules(),
    "ScoreCondition|FlagCondition": [
        {"rule": "has(self.score) != has(self.flag)", "message": "expected {score: …} or {flag: …}"},
        keys_of_conditions(),
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
    **{f"{model}.{key}": [IN_THE_IMAGE["model"]] for model, key in NAMED},
    "Spec.storage": [ADDRESS],
    "Spec": [
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
    """Join tables; the rules of a key that several tables have follow each other."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: [rule for table in tables for rule in table.get(key, ())] for key in keys}

"""The CustomResourceDefinitions, made of the recipe's models. `make manifests` writes them; a test fails on drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.recipe.recipe import Spec
from pipelines.operator.crd import status_schema
from pipelines.operator.crd.cel_rules import CHANGES, RULES, TEMPLATE, joined, longest_name
from pipelines.operator.crd.structural_schema import structural
from pipelines.operator.schedule.model import LONGEST_SCHEDULE, ScheduleSpec

Object = dict[str, Any]

GROUP, VERSION = "recaption.dev", "v1alpha1"
FOLDER = Path(__file__).parents[3] / "manifests" / "crd"


def recaption_crd() -> Object:
    root = {
        "type": "object",
        "description": "A recipe: training sets of a pool's images with better texts, made, trained on and evaluated.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(Spec, joined(RULES, CHANGES)),
            "status": status_schema.RECAPTION,
        },
        "x-kubernetes-validations": [longest_name()],
    }
    columns = [
        column("Phase", ".status.phase", "What the Recaption does now, in one word."),
        column("Stage", ".status.stage", "The stage that works now."),
        column("Progress", ".status.progress", "How far that stage is."),
        column("Rate", ".status.rate", "Samples per second of that stage."),
        column("Best", ".status.bestResult", "The best mixture and its number."),
        column("Age", ".metadata.creationTimestamp", "Time since the object was made.", type="date"),
        column("Pool", ".spec.pool.name", "Name of the pool.", priority=1),
        column("Accepted", _reason("Accepted"), "Whether the recipe is valid.", priority=1),
        column("Reachable", _reason("Reachable"), "Whether KFP and storage answered.", priority=1),
        column("KFP run", ".status.kfp.runId", "KFP's id of the run.", priority=1),
        column("Report", ".status.report", "Where the report lies.", priority=1),
    ]
    selectable = [".spec.pool.name", ".spec.storage", ".status.phase"]
    return _crd("Recaption", ["rcap", "rcaps"], root, columns, selectable)


def schedule_crd() -> Object:
    root = {
        "type": "object",
        "description": "A Recaption for every new Common Crawl dump, once.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(ScheduleSpec, joined(RULES, TEMPLATE)),
            "status": status_schema.SCHEDULE,
        },
        "x-kubernetes-validations": [longest_name(LONGEST_SCHEDULE)],
    }
    columns = [
        column("Schedule", ".spec.schedule", "The schedule as a cron expression."),
        column("Dumps", ".spec.dumps", "Which dumps the schedule is for."),
        column("Suspend", ".spec.suspend", "Whether nothing is started.", type="boolean"),
        column("Last dump", ".status.lastDump", "The dump whose Recaption was made last."),
        column("Behind", ".status.behind", "How many wanted dumps are not done.", type="integer"),
        column("Next", ".status.nextScheduleTime", "When the schedule is due next, in UTC."),
        column("Age", ".metadata.creationTimestamp", "Time since the object was made.", type="date"),
        column("Time zone", ".spec.timeZone", "Time zone of the schedule.", priority=1),
        column("Active", ".status.active", "Recaptions that are not finished.", priority=1),
        column("Accepted", _reason("Accepted"), "Whether schedule and recipe are valid.", priority=1),
        column("Listed", _reason("DumpsListed"), "Whether the list of dumps could be read.", priority=1),
        column("Scheduled", _reason("Scheduled"), "What came of the last time.", priority=1),
    ]
    return _crd("RecaptionSchedule", ["rcapsched"], root, columns, [".spec.suspend"])


def column(name: str, path: str, description: str, type: str = "string", priority: int = 0) -> Object:
    made = {"name": name, "type": type, "jsonPath": path, "description": description}
    return made | ({"priority": priority} if priority else {})


def _reason(condition: str) -> str:
    return f'.status.conditions[?(@.type=="{condition}")].reason'


def _crd(kind: str, short: list[str], root: Object, columns: list[Object], selectable: list[str]) -> Object:
    singular = kind.lower()
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "selectableFields": [{"jsonPath": path} for path in selectable],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{singular}s.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": f"{singular}s",
                "singular": singular,
                "shortNames": short,
                "categories": [
                    "recaptioning"
                ],  # not `recaption`: kubectl would take the kind's own name for all of them
            },
            "versions": [version],
        },
    }


def files() -> dict[str, str]:
    """Return the files of manifests/crd by name."""
    made = "Generated by `make manifests` from the recipe's models: change those."
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["recaptions.yaml", "recaptionschedules.yaml"],
    }
    return {
        "recaptions.yaml": _yaml(f"The custom resource Recaption. {made}", recaption_crd()),
        "recaptionschedules.yaml": _yaml(f"The custom resource RecaptionSchedule. {made}", schedule_crd()),
        "kustomization.yaml": _yaml(f"The custom resources. {made}", kustomization),
    }


class _Dumper(yaml.SafeDumper):
    """CEL over several lines as a block."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
_Dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign]


def _yaml(comment: str, *objects: Object) -> str:
    text: str = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=116, allow_unicode=True)
    return f"# {comment}\n{text}"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_text(content, encoding="utf-8")

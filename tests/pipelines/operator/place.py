"""Where the operator is tried: stand-ins of the API server and of KFP, a storage, and who plays KFP's part."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from components.base.errors import RecaptionError
from components.pool.run import Run, load_run
from components.stages.report.table import results
from pipelines.execution import run_status
from pipelines.kubeflow import steps
from pipelines.kubeflow.steps import ExecutorInput
from pipelines.kubernetes.cluster import RECAPTIONS, Cluster, Conflict
from pipelines.operator.recaption import reconcile
from pipelines.operator.runtime.conditions import Object
from pipelines.operator.runtime.dependencies import Dependencies
from pipelines.operator.runtime.kfp import Kfp
from pipelines.operator.runtime.settings import Settings
from tests.filled import with_index
from tests.pipelines.kubeflow.kfp_server import Kfp as KfpServer
from tests.pipelines.kubeflow.kfp_server import kfp_server
from tests.pipelines.kubernetes.api_server import Api, api_server
from tests.pools import sample, write_tar

NAMESPACE = "research"
PACKAGE = "pipelineInfo: {name: recaption}\n"


@dataclass
class Player:
    """Plays KFP's part: plans what is new, by the real step, and ends what is being ended."""

    folder: Path
    kfp: KfpServer
    planned: dict[str, str] = field(default_factory=dict)
    """KFP run → URI of what it executes."""

    def runs(self) -> list[dict[str, Any]]:
        return self.kfp.held["runs"]

    def play(self) -> None:
        """A step that fails isn't retried, and KFP never says why it did: its exit code is 1 whatever it was."""
        for run in list(self.runs()):
            if run["state"] == "CANCELING":
                run["state"] = "FAILED"  # as KFP 2.17 calls it
            if run["state"] == "PENDING":
                try:
                    mine = self.plan(run["run_id"], run["runtime_config"]["parameters"])
                    run["state"] = "RUNNING" if mine else "SUCCEEDED"
                except RecaptionError:
                    run["state"] = "FAILED"

    def plan(self, run_id: str, values: dict[str, Any]) -> bool:
        """Whether the run is this KFP run's."""
        names = ("run", "claimant", "mine", "reason")
        files = {n: {"outputFile": str(self.folder / "kfp" / run_id / n)} for n in names}
        whole = {"inputs": {"parameterValues": {**values, "kfp_run": run_id}}, "outputs": {"parameters": files}}
        steps.plan(ExecutorInput.parse(json.dumps(whole)))
        self.planned[run_id] = Path(files["run"]["outputFile"]).read_text()
        return json.loads(Path(files["mine"]["outputFile"]).read_text()) is True

    def finish(self, run_id: str) -> None:
        """The KFP run ends with a report."""
        run = with_index(load_run(self.planned[run_id]))
        run.storage.write(f"{run.folder}/results.json", json.dumps(results(run)).encode())
        run_status.put(run, "report", {"state": "done"})
        next(found for found in self.runs() if found["run_id"] == run_id)["state"] = "SUCCEEDED"


@dataclass
class Place:
    """One namespace with one Recaption, `test`, unless a test makes more."""

    folder: Path
    api: Api
    kfp: KfpServer
    deps: Dependencies

    def __post_init__(self) -> None:
        self.player = Player(self.folder, self.kfp)
        self.runs, self.play = self.player.runs, self.player.play

    def spec(self, **values: Any) -> Object:
        return {
            "storage": str(self.folder / "storage"),
            "pool": {"name": "pool", "shards": str(self.folder / "pool")},
            "mixtures": [{"name": "raw", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}],
            **values,
        }

    def apply(self, name: str = "test", annotations: dict[str, str] | None = None, **values: Any) -> None:
        """Create it, or replace what is given of its spec and annotations."""
        cluster, meta = self.deps.cluster, {"name": name, "annotations": annotations or {}}
        body = {"apiVersion": "recaption.dev/v1alpha1", "kind": "Recaption", "metadata": meta}
        if not cluster.create(RECAPTIONS, {**body, "spec": self.spec(**values)}):
            cluster.patch(RECAPTIONS, name, {"metadata": {"annotations": annotations or {}}, "spec": values})

    def delete(self, name: str = "test") -> None:
        self.deps.cluster.delete(RECAPTIONS, name)

    def object(self, name: str = "test") -> Object | None:
        return self.api.objects.get("recaptions", {}).get(name)

    def status(self, name: str = "test") -> Object:
        found = self.object(name)
        assert found is not None
        return dict(found.get("status", {}))

    def phase(self, name: str = "test") -> str:
        return str(self.status(name)["phase"])

    def reason(self, kind: str) -> str:
        return next(f"{c['status']} {c['reason']}" for c in self.status()["conditions"] if c["type"] == kind)

    def events(self) -> list[str]:
        return [event["reason"] for event in self.api.of("events")]

    def look(self, name: str = "test", deps: Dependencies | None = None, turns: int = 20) -> float:
        """As the controller does, until it would wait; seconds until the next look."""
        for _ in range(turns):
            thing = self.object(name)
            if thing is None:
                return inf
            try:
                wait = reconcile.reconcile(json.loads(json.dumps(thing)), deps or self.deps)
            except Conflict:
                continue
            if wait > 1.5:
                return wait
        raise AssertionError(f"{name} doesn't come to rest")

    def run(self) -> Run:
        """The one that the object shows."""
        return load_run(self.status()["run"])

    def progress(self, key: str, **entry: Any) -> None:
        run_status.put(self.run(), key, entry)

    def ends(self, key: str, error: BaseException) -> None:
        """A stage ends by this error, as its step records it; the KFP run goes on."""

        def fail() -> None:
            raise error

        with suppress(type(error)):
            run_status.timed(self.run(), key, fail)

    def finish(self, state: str = "SUCCEEDED") -> None:
        """The KFP run ends: with a report, or without."""
        for run in self.runs():
            if run["state"] == "RUNNING" and state == "SUCCEEDED":
                self.player.finish(run["run_id"])
            elif run["state"] == "RUNNING":
                run["state"] = state

    def jobs(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.api.of("jobs")]

    def left_over(self, name: str = "left") -> None:
        """A Job that the run's launcher has started."""
        from pipelines.kubernetes.jobs import OURS, RUN, run_label

        labels = {**OURS, RUN: run_label(self.status()["run"])}
        self.api.put("jobs", {"metadata": {"name": name, "labels": labels, "namespace": NAMESPACE}})


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    write_tar(folder / "pool" / "00000000.tar", {"0": sample(0)})
    with (
        api_server(NAMESPACE) as (api, address),
        kfp_server() as (endpoint, kfp),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RECAPTION_LAUNCHER", "local")  # so that the plan step takes a folder as storage
        configuration = client.Configuration(host=address)
        configuration.retries = False
        cluster = Cluster(client.ApiClient(configuration), NAMESPACE, outage=0.2)
        settings = Settings(endpoint, "https://kfp.example", kfp_namespace=NAMESPACE)
        yield Place(folder, api, kfp, Dependencies(cluster, Kfp(settings, lambda: PACKAGE), settings))
        cluster.client.close()


def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition that other threads bring about."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)

"""A new version of the operator, with a new tag, beside runs of the version before: as docs/how-to/upgrade.md says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from components.base.errors import TemporaryError
from pipelines.operator.runtime.dependencies import Dependencies
from tests.pipelines.operator.place import Place


def upgraded(here: Place, tag: str = "2.0") -> Dependencies:
    """The same cluster, looked at by an operator that was started with this tag."""
    settings = replace(here.deps.settings, tag=tag)
    return replace(here.deps, settings=settings, kfp=replace(here.deps.kfp, settings=settings))


def begun(here: Place) -> None:
    """A run is under way, started by the operator of version 1.0."""
    here.deps = upgraded(here, "1.0")
    here.apply()
    here.look()
    here.play()
    here.look()


def images(run: dict[str, Any]) -> set[str]:
    given = run["runtime_config"]["parameters"]
    return {given[f"{kind}_image"].rpartition(":")[2] for kind in ("operator", "cpu", "gpu")}


def test_a_run_goes_on_with_the_images_that_it_began_with(here: Place) -> None:
    begun(here)
    here.deps = upgraded(here)
    here.look()
    (run,) = here.runs()
    assert (run["state"], images(run)) == ("RUNNING", {"1.0"})
    here.finish()
    here.look()
    assert here.phase() == "Succeeded"
    assert len(here.runs()) == 1, "what is done is not done again"


def test_a_further_attempt_has_the_new_images_and_takes_over_the_run(here: Place) -> None:
    begun(here)
    planned = here.status()["run"]
    here.ends("embed", TemporaryError("no answer"))
    here.finish("FAILED")
    here.deps = upgraded(here)
    here.look()
    here.apply(annotations={"recaption.dev/retry": "1"})
    here.look()
    here.play()
    here.look()
    assert [images(run) for run in here.runs()] == [{"1.0"}, {"2.0"}]
    assert here.status()["run"] == planned


def test_a_recaption_that_an_older_operator_has_finished_is_left_alone(here: Place) -> None:
    begun(here)
    here.finish()
    here.look()
    before = here.status()
    here.deps = upgraded(here)
    here.look()
    assert here.status() == before

"""The operator refuses every mistake in a recipe or schedule in the command line's words, and the status shows them.

The CRD refuses most of them at admission; what no schema and no cheap CEL rule can check reaches the operator, and so
does everything where an older CRD is installed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf

import pytest

from pipelines.kubeflow.parameters import NOT_HERE
from pipelines.operator.recaption.decide import decide
from pipelines.operator.recaption.observation import Observation
from pipelines.operator.runtime.conditions import Object, condition
from pipelines.operator.runtime.patches import FINALIZER
from pipelines.operator.schedule import decide as schedules
from tests.pipelines.operator.corpus import ADMITTED, BAD, BASE, OPERATOR, PRIVATE, Case, changed

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
KINDS = ("Recaption", "RecaptionSchedule")
REACHING = [  # Kubernetes itself checks the kind and the metadata, but for what a name may be
    case
    for case in (*BAD, *ADMITTED)
    if case.value["kind"] in KINDS and case.says.startswith(("spec.", "metadata.name: found"))
]


def accepted(value: Object) -> Object:
    """The condition Accepted that the operator sets on a new object, which it then leaves alone."""
    meta = {"namespace": "n", "uid": "u", "generation": 1, "creationTimestamp": "2026-11-24T11:00:00Z"}
    thing = {**value, "metadata": {**value["metadata"], **meta, "finalizers": [FINALIZER]}}
    if value["kind"] == "Recaption":
        decision = decide(thing, Observation(NOW))
        assert decision.status["phase"] == "Refused"
        assert (decision.act, decision.wait) == (None, inf)
        return condition(decision.status, "Accepted")
    decided = schedules.decide(thing, schedules.ScheduleObservation(NOW))
    assert (decided.act, decided.wait) == (None, inf)
    return condition(decided.status, "Accepted")


@pytest.mark.parametrize("case", REACHING, ids=str)
def test_a_mistake_is_refused_in_the_command_lines_words(case: Case) -> None:
    found = accepted(case.value)
    assert (found["status"], found["reason"]) == ("False", "Invalid")
    lines = [line.removeprefix("recipe: ") for line in found["message"].splitlines()]
    assert any(line.startswith(case.says) for line in lines), found["message"]


def test_what_only_the_operator_can_refuse_is_among_them() -> None:
    assert sum(case.by == OPERATOR for case in REACHING) > 25


def test_a_cluster_refuses_private_networks_which_the_command_line_takes() -> None:
    found = accepted(changed(BASE, PRIVATE))
    assert found["message"] == f"recipe: spec.download.allowNetworks: {NOT_HERE}"

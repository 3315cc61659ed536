"""The operator's process as the Deployment starts it, kopf included, before the stand-ins."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.components.storage.s3_server import BUCKET, ENVIRONMENT, Secret, s3_server
from tests.pipelines.operator.place import NAMESPACE, Place, until
from tests.pipelines.operator.process import Operator, free_port, here_as, running
from tests.privileges import nameless


@pytest.fixture
def operator(here: Place) -> Iterator[Operator]:
    with running(here, here_as()) as made:
        yield made


@pytest.mark.slow
def test_the_process(here: Place, operator: Operator) -> None:
    here.apply()
    until(here.runs, 60)
    assert b"deploymentSpec" in here.kfp.packages[0], "the real pipeline was registered"
    here.play()
    here.apply(suspend=True)
    until(lambda: here.status().get("phase") == "Suspended")
    until(lambda: here.runs()[0]["state"] == "CANCELING")
    here.play()
    here.delete()
    until(lambda: here.object() is None)
    until(lambda: 'recaption_runs{phase="Suspended"} 0.0' in operator.get("metrics"))
    assert operator.stop() == 0
    lease = here.api.objects["leases"]["recaption-operator"]
    assert lease["spec"]["holderIdentity"] == "", "given up for the next one"
    log = operator.log.read_text()
    assert "Traceback" not in log
    assert f"Recaption {NAMESPACE}/test: Valid: the recipe is valid" in log


@pytest.mark.slow
def test_the_process_of_a_user_without_a_name(here: Place) -> None:
    with running(here, here_as(*nameless())) as operator:
        here.apply(suspend=True)  # all is listed by now: only the watch tells of it
        until(lambda: operator.process.poll() is not None or here.status().get("phase") == "Suspended")
        assert operator.process.poll() is None, operator.log.read_text()


@pytest.mark.slow
def test_a_secret_that_comes_after_the_operator_needs_no_restart(here: Place) -> None:
    secret, none = Secret(here.folder / "secret"), str(here.folder / "none")
    without = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_CONFIG_FILE": none}
    with (
        s3_server() as address,
        running(here, here_as(RECAPTION_SECRET_FOLDER=str(secret.folder), **without)) as operator,
    ):
        here.apply(storage=f"s3://{BUCKET}/recaption")
        until(lambda: "no AWS credentials" in json.dumps(here.status()), 60)
        assert here.reason("Reachable") == "False Refused"
        secret.mount({**ENVIRONMENT, "AWS_ENDPOINT_URL": address})
        until(lambda: here.reason("Reachable").startswith("True"), 60)
        assert operator.process.poll() is None


def test_a_port_that_is_taken_is_one_line(here: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        second = Operator(here, "http://127.0.0.1:1", taken.getsockname()[1], here_as())
        assert second.process.wait(60) == 42
    assert "choose another" in second.log.read_text().splitlines()[-1]


def test_a_token_that_the_api_server_does_not_know_ends_in_one_line(here: Place) -> None:
    here.api.away = "stranger"
    operator = Operator(here, here.deps.cluster.client.configuration.host, free_port(), here_as())
    assert operator.process.wait(60) == 75
    said = [line for line in operator.log.read_text().splitlines() if line.startswith("error: ")]
    assert said == ["error: the API server doesn't know the operator's token or certificate (401)"]

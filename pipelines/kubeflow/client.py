"""Runs and schedules on a KFP endpoint, by kfp's own client: every wait has an end, every refusal is one line."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server_api
import urllib3
from kfp.client import Client
from kfp.client import client as kfp_client

from components.base.errors import PermanentError, TemporaryError
from pipelines.kubeflow.cron import check_cron
from pipelines.kubeflow.naming import ABOUT, NAME, version_name

CONNECT, READ = 5, 30  # seconds of one attempt; an unreachable endpoint is given up after 4 × 5 s
RETRIES = urllib3.Retry(total=3, backoff_factor=0.5, allowed_methods=None, redirect=0, read=0, status=0)
RETRIED = (408, 429, 500, 502, 503, 504)
NOT_FOUND = 5  # gRPC's code, as KFP's answers have it

kfp_client.print = lambda *_, **__: None  # its links: we say what happened. To turn stdout away silences all threads


@dataclass(frozen=True)
class Endpoint:
    """Where KFP's API server is and how to be let in."""

    host: str
    """http(s)://…, of the API server or of the UI in front of it."""
    token: str | None = None
    """Bearer token."""
    ca: str | None = None
    """File of the certificates to trust; None trusts the public ones."""
    namespace: str | None = None
    """Of a KFP with several users."""


@dataclass(frozen=True)
class KfpRun:
    """What KFP says of a run."""

    id: str
    state: str
    """KFP's RuntimeState: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED or PAUSED."""
    created: str = ""
    """RFC 3339."""
    error: str = ""
    history: tuple[str, ...] = ()
    """The states that KFP has seen it in, oldest first."""

    @property
    def was_terminated(self) -> bool:
        """Return whether somebody ended it: KFP 2.17 calls such a run FAILED, having called it CANCELING before."""
        before = [state for state in self.history if state != self.state]
        return self.state == "CANCELED" or (self.state == "FAILED" and before[-1:] == ["CANCELING"])


class Pipelines:
    """What we ask of one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        with _one_line(endpoint.host), _quiet():
            health = _healthz(endpoint)  # kfp's constructor asks too, without an end to the wait
            self.multi_user = bool(health.get("multi_user"))
            self.version = str(health.get("tag_name", "unknown"))
            self.client = Client(
                host=endpoint.host,
                existing_token=endpoint.token,
                ssl_ca_cert=endpoint.ca,
                namespace=endpoint.namespace or "kubeflow",
            )
            rest = self.client.runs.run_service_create_run.__self__.api_client.rest_client
            rest.request = _bounded(rest.request)

    def register(self, package: str) -> tuple[str, str]:
        """Ids of our pipeline and of the version with this content, which are made where they are missing."""
        name = version_name(package)
        with _one_line(self.endpoint.host), _quiet():
            pipeline_id = self._pipeline() or self._create_pipeline()
            return pipeline_id, self._version(pipeline_id, name) or self._upload(pipeline_id, name, package)

    def submit(
        self, package: str, name: str, parameters: Mapping[str, Any], experiment: str, account: str | None = None
    ) -> str:
        """Start a run; its id."""
        pipeline_id, version_id = self.register(package)
        with _one_line(self.endpoint.host), _quiet():
            run = self.client.run_pipeline(
                self._experiment(experiment),
                name,
                params=dict(parameters),
                pipeline_id=pipeline_id,
                version_id=version_id,
                service_account=account,
            )
            return _id(run.run_id)

    def find(self, name: str) -> list[KfpRun]:
        """All runs of this name, oldest first."""
        with _one_line(self.endpoint.host), _quiet():
            found = self.client.list_runs(namespace=self.endpoint.namespace, filter=_named(name), page_size=100).runs
            runs = [_run(run) for run in found or [] if run.display_name == name]
        return sorted(runs, key=lambda run: (run.created, run.id))

    def get(self, run_id: str) -> KfpRun | None:
        """None where KFP, not something in front of it, knows no such run."""
        with _one_line(self.endpoint.host), _quiet():
            try:
                return _run(self.client.get_run(run_id))
            except kfp_server_api.ApiException as error:
                if error.status == 404 and _code(error.body) == NOT_FOUND:
                    return None
                raise

    def terminate(self, run_id: str) -> None:
        """Ask KFP to end a run; what it had launched it doesn't end."""
        with _one_line(self.endpoint.host), _quiet():
            self.client.terminate_run(run_id)

    def retry(self, run_id: str) -> None:
        """Let an ended run go on with what it has not done. Raises PermanentError where KFP can't."""
        with _one_line(self.endpoint.host), _quiet():
            self.client.runs.run_service_retry_run(run_id)

    def schedule(
        self,
        package: str,
        name: str,
        cron: str,
        parameters: Mapping[str, Any],
        experiment: str,
        account: str | None = None,
    ) -> tuple[str, bool]:
        """Make a recurring run of this version: one at a time, none caught up with; its id, and whether it is new.

        Raises:
            PermanentError: the cron isn't one, or there is another recurring run of this name.
        """
        check_cron(cron)
        pipeline_id, version_id = self.register(package)
        with _one_line(self.endpoint.host), _quiet():
            experiment_id = self._experiment(experiment)
            for found in self._recurring(experiment_id, name):
                if _same(found, version_id, cron, parameters):
                    return str(found.recurring_run_id), False
                raise PermanentError(
                    f"schedule {name}: there is one with another version, cron or recipe ({found.recurring_run_id}); "
                    "delete it in KFP's UI (the dumps it did stay done), or choose another name"
                )
            made = self.client.create_recurring_run(
                experiment_id,
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=dict(parameters),
                pipeline_id=pipeline_id,
                version_id=version_id,
                service_account=account,
            )
            return _id(made.recurring_run_id), True

    def _pipeline(self) -> str | None:
        """Of a KFP with several users: in the namespace; kfp's own look-up by name asks for those shared by all."""
        found = self.client.list_pipelines(namespace=self.endpoint.namespace, filter=_named(NAME)).pipelines or []
        return next((_id(p.pipeline_id) for p in found if p.display_name == NAME), None)

    def _create_pipeline(self) -> str:
        body = kfp_server_api.V2beta1Pipeline(
            display_name=NAME, name=NAME, description=ABOUT, namespace=self.endpoint.namespace
        )
        try:
            return _id(self.client.pipelines.pipeline_service_create_pipeline(body).pipeline_id)
        except kfp_server_api.ApiException as error:
            found = self._pipeline() if error.status == 409 else None  # another was faster
            if found is None:
                raise
            return found

    def _version(self, pipeline_id: str, name: str) -> str | None:
        found = self.client.list_pipeline_versions(pipeline_id, filter=_named(name)).pipeline_versions or []
        return next((str(v.pipeline_version_id) for v in found if v.display_name == name), None)

    def _upload(self, pipeline_id: str, name: str, package: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            path.write_text(package, encoding="utf-8")
            try:
                return _id(self.client.upload_pipeline_version(str(path), name, pipeline_id).pipeline_version_id)
            except kfp_server_api.ApiException as error:
                found = self._version(pipeline_id, name) if error.status == 409 else None
                if found is None:
                    raise
                return found

    def _experiment(self, name: str) -> str:
        return _id(self.client.create_experiment(name, namespace=self.endpoint.namespace).experiment_id)

    def _recurring(self, experiment_id: str, name: str) -> list[Any]:
        found = self.client.list_recurring_runs(experiment_id=experiment_id, filter=_named(name)).recurring_runs or []
        return [run for run in found if run.display_name == name]


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _id(value: Any) -> str:
    """Raises ValueError: kfp's client makes an object without an id of any page that comes with 200."""
    if not value:
        raise ValueError("the answer is no KFP API server's; is it a login page?")
    return str(value)


def _run(found: Any) -> KfpRun:
    error = found.error.message if found.error and found.error.message else ""
    created = found.created_at
    when = created if isinstance(created, str) else created.isoformat() if created else ""
    history = tuple(str(status.state) for status in found.state_history or ())
    return KfpRun(_id(found.run_id), str(found.state or "PENDING"), when, " ".join(error.split()), history)


def _code(body: Any) -> Any:
    try:
        return json.loads(body)["code"]
    except (ValueError, TypeError, KeyError):
        return None


def _same(found: Any, version_id: str, cron: str, parameters: Mapping[str, Any]) -> bool:
    reference = found.pipeline_version_reference
    return (
        reference is not None
        and reference.pipeline_version_id == version_id
        and found.trigger.cron_schedule.cron == cron
        and (found.runtime_config.parameters or {}) == dict(parameters)
    )


def _healthz(endpoint: Endpoint) -> dict[str, Any]:
    """What KFP says of itself: multi_user (each has a namespace), and tag_name, which the client's model lacks."""
    config = kfp_server_api.Configuration(host=endpoint.host.rstrip("/"))
    config.ssl_ca_cert, config.retries = endpoint.ca, RETRIES
    if endpoint.token:
        config.api_key["authorization"], config.api_key_prefix["authorization"] = endpoint.token, "Bearer"
    with kfp_server_api.ApiClient(config) as api:
        service = kfp_server_api.HealthzServiceApi(api)
        answer = service.healthz_service_get_healthz(_request_timeout=(CONNECT, READ), _preload_content=False)
    with contextlib.suppress(ValueError):
        found = json.loads(answer.data)
        if isinstance(found, dict):
            return found
    raise ValueError("this is no KFP API server: its healthz is no JSON object; is it a login page?")


def _bounded(request: Any) -> Any:
    """The client's HTTP request with a timeout, which kfp passes nowhere."""

    def bounded(*arguments: Any, **named: Any) -> Any:
        named["_request_timeout"] = named.get("_request_timeout") or (CONNECT, READ)
        return request(*arguments, **named)

    return bounded


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without kfp's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _one_line(host: str) -> Iterator[None]:
    """What kfp's client raises, as one line that says what to do."""
    try:
        yield
    except kfp_server_api.ApiException as error:
        what = f"KFP at {host}: {error.status} {error.reason}"
        if error.status in (401, 403):
            raise PermanentError(f"{what}: not let in; give a valid token (--token-file) and --namespace") from error
        if error.status in RETRIED:
            raise TemporaryError(f"{what}; try again") from error
        raise PermanentError(f"{what}: {_message(error.body)}") from error
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise TemporaryError(f"KFP at {host} can't be reached: {' '.join(str(reason).split())}") from error
    except ValueError as error:
        raise PermanentError(f"KFP at {host}: {' '.join(str(error).split())}") from error


def _message(body: Any) -> str:
    """KFP's own words, else the start of whatever answered."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "no message")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = json.loads(text)["message"]
    return " ".join(text.split())[:300]

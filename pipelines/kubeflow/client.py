"""Runs and schedules on a KFP endpoint, by KFP's REST client: every wait has an end, every refusal is one line."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server_api
import urllib3

from components.base.errors import PermanentError, TemporaryError
from pipelines.kubeflow.cron import check_cron
from pipelines.kubeflow.naming import ABOUT, NAME, version_name

CONNECT, READ = 5, 30  # seconds of one attempt; an unreachable endpoint is given up after 4 × 5 s
RETRIES = urllib3.Retry(
    total=3, backoff_factor=0.5, redirect=0, read=1, status=0
)  # a POST that was sent is never repeated
RETRIED = (408, 429, 500, 502, 503, 504)
NOT_FOUND = 5  # gRPC's code, as KFP's answers have it


@dataclass(frozen=True)
class Endpoint:
    """The address of KFP's API server, and the credentials for it."""

    host: str
    """http(s)://…, of the API server or of the UI in front of it."""
    token: str | None = None
    """Bearer token."""
    ca: str | None = None
    """File of the certificates to trust; None trusts the public ones."""
    namespace: str | None = None
    """The user's namespace, in a KFP with several users."""


@dataclass(frozen=True)
class KfpRun:
    """A run as KFP reports it."""

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
    """Our pipeline, its runs and its schedules on one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        api = kfp_server_api.ApiClient(_configuration(endpoint))
        self.pipelines = kfp_server_api.PipelineServiceApi(api)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(api)
        self.experiments = kfp_server_api.ExperimentServiceApi(api)
        self.runs = kfp_server_api.RunServiceApi(api)
        self.recurring = kfp_server_api.RecurringRunServiceApi(api)
        with _one_line(endpoint.host):
            health = _healthz(api)
            self.multi_user = bool(health.get("multi_user"))
            self.version = str(health.get("tag_name", "unknown"))

    def register(self, package: str) -> tuple[str, str]:
        """Return the ids of our pipeline and of its version with this content; create what is missing."""
        name = version_name(package)
        with _one_line(self.endpoint.host):
            pipeline_id = self._pipeline() or self._create_pipeline()
            return pipeline_id, self._version(pipeline_id, name) or self._upload(pipeline_id, name, package)

    def submit(
        self, package: str, name: str, parameters: Mapping[str, str], experiment: str, account: str | None = None
    ) -> str:
        """Start a run and return its id."""
        execution = self._execution(package, parameters)
        with _one_line(self.endpoint.host):
            run = kfp_server_api.V2beta1Run(
                display_name=name, experiment_id=self._experiment(experiment), service_account=account, **execution
            )
            return _id(_ask(self.runs.run_service_create_run, run).run_id)

    def find(self, name: str) -> list[KfpRun]:
        """List all runs of this name, oldest first."""
        with _one_line(self.endpoint.host):
            options = {"page_size": 100, "filter": _named(name), **self._namespace}
            found = _ask(self.runs.run_service_list_runs, **options).runs
            runs = [_run(run) for run in found or [] if run.display_name == name]
        return sorted(runs, key=lambda run: (run.created, run.id))

    def get(self, run_id: str) -> KfpRun | None:
        """Return a run; None where KFP, not something in front of it, knows no such run."""
        with _one_line(self.endpoint.host):
            try:
                return _run(_ask(self.runs.run_service_get_run, run_id))
            except kfp_server_api.ApiException as error:
                if error.status == 404 and _code(error.body) == NOT_FOUND:
                    return None
                raise

    def terminate(self, run_id: str) -> None:
        """Ask KFP to end a run. The Jobs that the run has launched go on."""
        with _one_line(self.endpoint.host):
            _ask(self.runs.run_service_terminate_run, run_id)

    def retry(self, run_id: str) -> None:
        """Let an ended run go on with what it has not done. Raises PermanentError where KFP can't."""
        with _one_line(self.endpoint.host):
            _ask(self.runs.run_service_retry_run, run_id)

    def schedule(
        self,
        package: str,
        name: str,
        cron: str,
        parameters: Mapping[str, str],
        experiment: str,
        account: str | None = None,
    ) -> tuple[str, bool]:
        """Create a recurring run of this version: one run at a time, and missed times are not made up for.

        Returns:
            its id, and whether it is new.

        Raises:
            PermanentError: the cron isn't one, or there is another recurring run of this name.
        """
        check_cron(cron)
        execution = self._execution(package, parameters)
        with _one_line(self.endpoint.host):
            experiment_id = self._experiment(experiment)
            for found in self._recurring(experiment_id, name):
                if _same(found, cron, execution):
                    return str(found.recurring_run_id), False
                raise PermanentError(
                    f"schedule {name}: there is one with another version, cron or recipe ({found.recurring_run_id}); "
                    "delete it in KFP's UI (the dumps it did stay done), or choose another name"
                )
            recurring = kfp_server_api.V2beta1RecurringRun(
                display_name=name,
                experiment_id=experiment_id,
                trigger=kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=cron)),
                max_concurrency=1,
                no_catchup=True,
                mode=kfp_server_api.RecurringRunMode.ENABLE,
                service_account=account,
                **execution,
            )
            made = _ask(self.recurring.recurring_run_service_create_recurring_run, recurring)
            return _id(made.recurring_run_id), True

    @property
    def _namespace(self) -> dict[str, str]:
        """Return the option that limits a listing to the user's namespace."""
        return {"namespace": self.endpoint.namespace} if self.endpoint.namespace else {}

    def _execution(self, package: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields of a run that say what it executes: the registered package, and its parameters."""
        pipeline_id, version_id = self.register(package)
        return {
            "pipeline_version_reference": kfp_server_api.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            "runtime_config": kfp_server_api.V2beta1RuntimeConfig(parameters=dict(parameters)),
        }

    def _pipeline(self) -> str | None:
        """Return our pipeline's id. In a KFP with several users it is the namespace's own pipeline."""
        found = _ask(self.pipelines.pipeline_service_list_pipelines, filter=_named(NAME), **self._namespace).pipelines
        return next((_id(p.pipeline_id) for p in found or [] if p.display_name == NAME), None)

    def _create_pipeline(self) -> str:
        body = kfp_server_api.V2beta1Pipeline(
            display_name=NAME, name=NAME, description=ABOUT, namespace=self.endpoint.namespace
        )
        create = self.pipelines.pipeline_service_create_pipeline
        return _create(lambda: _ask(create, body).pipeline_id, self._pipeline)

    def _version(self, pipeline_id: str, name: str) -> str | None:
        list_versions = self.pipelines.pipeline_service_list_pipeline_versions
        found = _ask(list_versions, pipeline_id, filter=_named(name)).pipeline_versions
        return next((str(v.pipeline_version_id) for v in found or [] if v.display_name == name), None)

    def _upload(self, pipeline_id: str, name: str, package: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            path.write_text(package, encoding="utf-8")
            upload, names = self.uploads.upload_pipeline_version, {"name": name, "pipelineid": pipeline_id}
            return _create(
                lambda: _ask(upload, str(path), **names).pipeline_version_id,
                lambda: self._version(pipeline_id, name),
            )

    def _experiment(self, name: str) -> str:
        """Return the id of the experiment of this name; create it if it is missing."""
        return self._find_experiment(name) or self._create_experiment(name)

    def _find_experiment(self, name: str) -> str | None:
        options = {"filter": _named(name), **self._namespace}
        found = _ask(self.experiments.experiment_service_list_experiments, **options).experiments
        return next((_id(e.experiment_id) for e in found or [] if e.display_name == name), None)

    def _create_experiment(self, name: str) -> str:
        body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self.endpoint.namespace)
        create = self.experiments.experiment_service_create_experiment
        return _create(lambda: _ask(create, body).experiment_id, lambda: self._find_experiment(name))

    def _recurring(self, experiment_id: str, name: str) -> list[Any]:
        options = {"experiment_id": experiment_id, "filter": _named(name)}
        found = _ask(self.recurring.recurring_run_service_list_recurring_runs, **options).recurring_runs
        return [run for run in found or [] if run.display_name == name]


def _ask(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a method of the REST client with a time limit."""
    return method(*arguments, **options, _request_timeout=(CONNECT, READ))


def _create(create: Callable[[], Any], find: Callable[[], str | None]) -> str:
    """Create something and return its id; where another client was faster, return the id of what that one made."""
    try:
        return _id(create())
    except kfp_server_api.ApiException as error:
        found = find() if error.status == 409 else None
        if found is None:
            raise
        return found


def _configuration(endpoint: Endpoint) -> Any:
    config = kfp_server_api.Configuration(host=endpoint.host.rstrip("/"))
    config.ssl_ca_cert, config.retries = endpoint.ca, RETRIES
    if endpoint.token:
        config.api_key["authorization"], config.api_key_prefix["authorization"] = endpoint.token, "Bearer"
    return config


def _named(name: str) -> str:
    """Return the filter of a listing for one name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _id(value: Any) -> str:
    """Return an id that an answer has. Raises ValueError without one: any page that comes with 200 is an answer."""
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
    """Return the gRPC code in an answer; None where there is none."""
    try:
        return json.loads(body)["code"]
    except (ValueError, TypeError, KeyError):
        return None


def _same(found: Any, cron: str, execution: Mapping[str, Any]) -> bool:
    """Return whether a recurring run executes this, at these times."""
    wanted, reference = execution["pipeline_version_reference"], found.pipeline_version_reference
    return (
        reference is not None
        and reference.pipeline_version_id == wanted.pipeline_version_id
        and found.trigger.cron_schedule.cron == cron
        and (found.runtime_config.parameters or {}) == execution["runtime_config"].parameters
    )


def _healthz(api: Any) -> dict[str, Any]:
    """Ask KFP about itself: multi_user (each user has a namespace), and tag_name, which the client's model lacks."""
    answer = _ask(kfp_server_api.HealthzServiceApi(api).healthz_service_get_healthz, _preload_content=False)
    with contextlib.suppress(ValueError):
        found = json.loads(answer.data)
        if isinstance(found, dict):
            return found
    raise ValueError("this is no KFP API server: its healthz is no JSON object; is it a login page?")


@contextlib.contextmanager
def _one_line(host: str) -> Iterator[None]:
    """Turn what the REST client raises into one line that says what to do."""
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
    """Return the message in KFP's answer, else the start of whatever answered."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "no message")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = json.loads(text)["message"]
    return " ".join(text.split())[:300]

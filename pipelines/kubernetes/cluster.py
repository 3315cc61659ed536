"""The API server, thinly: dicts in and out, retries while it is away, and one line where it refuses."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from components.base.errors import PermanentError, TemporaryError
from pipelines.kubernetes.jobs import Owner

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

log = logging.getLogger(__name__)

OUTAGE = 600.0  # seconds that the API server may be away: a control plane's upgrade takes a few minutes
LONGEST_PAUSE = 15.0  # seconds between two attempts
TIMEOUT = (5.0, 30.0)  # seconds to connect and to read
ACCEPTED = {
    "object": "application/json",
    "metadata": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    "str": "*/*",
}
IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
JOBS, PODS, EVENTS = "jobs.batch", "pods", "events"
WORKFLOWS, TRAIN_JOBS = "workflows.argoproj.io", "trainjobs.trainer.kubeflow.org"
RECAPTIONS, SCHEDULES = "recaptions.recaption.dev", "recaptionschedules.recaption.dev"
LEASES = "leases.coordination.k8s.io"
_PATHS = {
    RECAPTIONS: "/apis/recaption.dev/v1alpha1/namespaces/{}/recaptions",
    SCHEDULES: "/apis/recaption.dev/v1alpha1/namespaces/{}/recaptionschedules",
    LEASES: "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    JOBS: "/apis/batch/v1/namespaces/{}/jobs",
    PODS: "/api/v1/namespaces/{}/pods",
    EVENTS: "/api/v1/namespaces/{}/events",
    WORKFLOWS: "/apis/argoproj.io/v1alpha1/namespaces/{}/workflows",
    TRAIN_JOBS: "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs",
}

Object = dict[str, Any]
_counting = threading.Lock()


class Clock(Protocol):
    """The time that requests and launchers measure and wait by: the module `time`, or a simulated one."""

    def monotonic(self) -> float:
        """Return seconds since some moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait for so many seconds."""


class QuotaRefused(TemporaryError):
    """A ResourceQuota has no room for the object now."""


class Forbidden(PermanentError):
    """The account that asks has no right to do so."""


class Conflict(TemporaryError):
    """The object has changed since the version that a patch named."""


class _ErrorStatus(Exception):
    """The API server refused with this code."""

    def __init__(self, code: int, body: str) -> None:
        try:
            self.message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            self.message = " ".join(body.split())[:300] or f"HTTP {code}"
        self.code = code


class Cluster:
    """One namespace of a cluster; "" is all of them, only to list. Counts its requests by verb and resource."""

    def __init__(self, client: ApiClient, namespace: str, outage: float = OUTAGE, clock: Clock = time) -> None:
        self.client, self.namespace, self.outage, self.clock = client, namespace, outage, clock
        self.requests: dict[str, int] = {}

    def within(self, namespace: str) -> Cluster:
        """Return the same cluster for another namespace; requests are counted together."""
        other = Cluster(self.client, namespace, self.outage, self.clock)
        other.requests = self.requests
        return other

    def create(self, resource: str, body: Object) -> bool:
        """Create an object; return False when an object of that name is there.

        Raises:
            QuotaRefused: worth another attempt later.
        """
        try:
            self._ask("create", resource, "POST", "", body=body, query={"fieldValidation": "Strict"})
        except _ErrorStatus as answer:
            if answer.code == 409 and "already exists" in answer.message:
                return False
            if answer.code == 404:
                raise PermanentError(f"{resource}: {_not_there(resource, self.namespace, answer)}") from answer
            raise TemporaryError(f"can't create {resource} now: {answer.message}") from answer
        return True

    def get(self, resource: str, name: str) -> Object | None:
        try:
            found: Object = self._ask("get", resource, "GET", f"/{name}")
        except _ErrorStatus as answer:
            if answer.code == 404:
                return None
            raise
        return found

    def find(
        self, resource: str, selector: str = "", fields: str = "", limit: int | None = None
    ) -> tuple[list[Object], str]:
        """List objects, at most `limit`; return also the version to watch from. An unknown kind of object has none."""
        query = {"labelSelector": selector, "fieldSelector": fields, "limit": limit or ""}
        try:
            found = self._ask("list", resource, "GET", "", query={k: v for k, v in query.items() if v})
        except _ErrorStatus as answer:
            if answer.code == 404:
                return [], ""
            raise
        return found["items"], found["metadata"].get("resourceVersion", "")

    def ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: Mapping[str, object] | None = None,
        only_metadata: bool = False,
    ) -> Object | None:
        """Request any path of the API server; None where nothing is there. `only_metadata` leaves a Secret unread."""
        kind = "metadata" if only_metadata else "object"
        try:
            found: Object = self._ask(method.lower(), path, method, "", query=query, body=body, kind=kind)
        except _ErrorStatus as answer:
            if answer.code == 404:
                return None
            raise PermanentError(f"{method} {path}: {answer.message}") from answer
        return found

    def own(self, resource: str, name: str, owners: list[Object]) -> None:
        """Replace an object's owners."""
        self.patch(resource, name, {"metadata": {"ownerReferences": owners}})

    def patch(self, resource: str, name: str, body: Object, part: str = "") -> Object | None:
        """Merge `body` into an object, or into its `part` `status`; return the object then, None when it is gone.

        Raises:
            Conflict: `body` names another metadata.resourceVersion than the object has by now.
        """
        what = f"{resource}/{part}" if part else resource
        try:
            found: Object = self._ask("patch", what, "PATCH", f"/{name}/{part}".rstrip("/"), body=body)
        except _ErrorStatus as answer:
            if answer.code == 404:
                return None
            raise Conflict(f"{resource} {name}: {answer.message}") from answer
        return found

    def delete(self, resource: str, name: str, uid: str | None = None) -> None:
        """Delete an object with what it owns. No error when it is gone, or another one has that name by now."""
        body: Object = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self._ask("delete", resource, "DELETE", f"/{name}", body=body)
        except _ErrorStatus as answer:
            if answer.code not in (404, 409):
                raise

    def log(self, pod: str, container: str, lines: int) -> str:
        """Return the end of a container's log; empty when it can't be read."""
        query = {"container": container, "tailLines": lines}
        try:
            return str(self._ask("get", "pods/log", "GET", f"/{pod}/log", query=query, kind="str"))
        except (_ErrorStatus, PermanentError, TemporaryError) as error:
            log.warning("log of pod %s: %s", pod, getattr(error, "message", error))
            return ""

    def wait(self, resource: str, selector: str, version: str, seconds: float) -> None:
        """Wait until an object changes, at most `seconds`. Only a hint: whatever fails here, the caller lists anew."""
        from urllib3.exceptions import HTTPError

        self._count("watch", resource)
        began = self.clock.monotonic()
        query = {"watch": "true", "labelSelector": selector, "timeoutSeconds": max(1, round(seconds))}
        query |= {"resourceVersion": version} if version else {}
        try:
            with closing(self._stream(resource, query, seconds)) as response:
                if response.status in (401, 403):
                    raise _refusal(
                        _ErrorStatus(response.status, response.data.decode()), "watch", resource, self.namespace
                    )
                if response.status == 200 and next(iter(response.stream(1)), b""):
                    return
        except (HTTPError, OSError):
            pass  # no event, or the API server is away: the listing will tell
        if self.clock.monotonic() - began < 1:
            self.clock.sleep(min(1.0, seconds))  # refused at once: don't ask in a tight loop

    def _stream(self, resource: str, query: Mapping[str, object], seconds: float) -> Any:
        from urllib3 import Timeout

        headers = dict(self.client.default_headers)
        self.client.update_params_for_auth(headers, [], ["BearerToken"])
        return self.client.rest_client.pool_manager.request(
            "GET",
            self.client.configuration.host + _path(resource, self.namespace),
            fields={k: str(v) for k, v in query.items()},
            headers=headers,
            preload_content=False,
            timeout=Timeout(connect=TIMEOUT[0], read=seconds),
            retries=False,
        )

    @contextmanager
    def hurried(self, seconds: float) -> Iterator[None]:
        """Wait for the API server for `seconds` only: for the last requests of a process that is being ended."""
        before, self.outage = self.outage, seconds
        try:
            yield
        finally:
            self.outage = before

    def _ask(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Object | None = None,
        kind: str = "object",
    ) -> Any:
        """Make one request, again while the API server is away.

        Raises:
            _ErrorStatus: 404, 409 and whatever the caller must judge.
            PermanentError: what asking again doesn't mend; the message says what is missing.
            TemporaryError: the API server was away for too long, or a quota is used up.
        """
        deadline, pause = self.clock.monotonic() + self.outage, 0.5
        while True:
            try:
                self._count(verb, resource)
                return self._call(resource, method, path, query or {}, body, kind)
            except _Away as away:
                if self.clock.monotonic() + pause > deadline:
                    raise TemporaryError(
                        f"the API server is away since {self.outage:.0f} s ({away}); run again to go on"
                    ) from away
                log.warning("API server: %s; again in %.1f s", away, pause)
                self.clock.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_PAUSE)
            except _ErrorStatus as answer:
                if answer.code in (404, 409):
                    raise
                raise _refusal(answer, verb, resource, self.namespace) from answer

    def _call(
        self, resource: str, method: str, path: str, query: Mapping[str, object], body: Object | None, kind: str
    ) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            return self.client.call_api(
                _path(resource, self.namespace) + path,
                method,
                query_params=[(key, str(value)) for key, value in query.items()],
                header_params={"Accept": ACCEPTED[kind], "Content-Type": content},
                body=body,
                response_type="str" if kind == "str" else "object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
        except ApiException as error:
            if error.status in (0, 408, 429, 500, 502, 503, 504):
                raise _Away(f"HTTP {error.status} {error.reason}") from error
            raise _ErrorStatus(error.status, error.body or "") from error
        except (HTTPError, OSError, ValueError) as error:  # ValueError: an answer that was cut off
            raise _Away(f"{type(error).__name__}: {error}") from error

    def _count(self, verb: str, resource: str) -> None:
        with _counting:
            self.requests[f"{verb} {resource}"] = self.requests.get(f"{verb} {resource}", 0) + 1


def _path(resource: str, namespace: str) -> str:
    if resource.startswith("/"):
        return resource
    path = _PATHS[resource.partition("/")[0]]
    return path.format(namespace) if namespace else path.replace("/namespaces/{}", "")


class _Away(Exception):
    """The API server did not answer, or asked to come back later."""


def connect(namespace: str | None = None) -> Cluster:
    """Connect to the cluster this pod runs in, or to the one that KUBECONFIG or ~/.kube/config names.

    Raises:
        PermanentError: there is none.
    """
    from kubernetes import client, config
    from urllib3 import disable_warnings
    from urllib3.exceptions import InsecureRequestWarning

    settings = client.Configuration()
    settings.retries = False  # our own retries end at a deadline
    settings.connection_pool_maxsize = 32  # threads that may ask at once
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(settings)
            return Cluster(client.ApiClient(settings), namespace or IN_POD.read_text().strip())
        config.load_kube_config(client_configuration=settings)
        if not settings.verify_ssl:  # said once, not with every request
            log.warning("%s: its certificate isn't verified, as the kubeconfig asks", settings.host)
            disable_warnings(InsecureRequestWarning)
        _, context = config.list_kube_config_contexts()
        return Cluster(client.ApiClient(settings), namespace or context["context"].get("namespace") or "default")
    except (config.ConfigException, OSError) as error:
        raise PermanentError(f"no cluster: this is no pod, and there is no kubeconfig ({error})") from error


def own_workflow(cluster: Cluster) -> Owner | None:
    """Return the KFP run's Workflow that owns the pod this runs in; None outside of one."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    pod = cluster.get(PODS, os.environ.get("HOSTNAME", ""))
    for owner in (pod or {}).get("metadata", {}).get("ownerReferences", []):
        if owner["kind"] == "Workflow":
            return Owner(owner["name"], owner["uid"])
    return None


def _refusal(answer: _ErrorStatus, verb: str, resource: str, namespace: str) -> Exception:
    place = "" if resource.startswith("/") else f"namespace {namespace}: " if namespace else "all namespaces: "
    if answer.code == 403 and "exceeded quota" in answer.message:
        return QuotaRefused(f"{place}{answer.message}")
    if answer.code == 403 and "is forbidden: User" in answer.message:
        found = re.search(r'User "([^"]+)"', answer.message)
        who = found[1] if found else "this account"
        role = "Role" if namespace else "ClusterRole"
        return Forbidden(f"{place}{who} may not {verb} {resource}; give it a {role} with verb {verb} on {resource}")
    if answer.code == 401:
        return PermanentError(f"the API server doesn't know who is asking to {verb} {resource}; log in again")
    return PermanentError(f"{place}can't {verb} {resource}: {answer.message}")


def _not_there(resource: str, namespace: str, answer: _ErrorStatus) -> str:
    if "namespaces" in answer.message:
        return f"namespace {namespace} does not exist"
    return f"this cluster has no such kind of object; install what brings {resource}"

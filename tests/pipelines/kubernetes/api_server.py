"""A stand-in for the API server on loopback: enough of it for Jobs, pods, events and Workflows, and it fails on demand.

It refuses what Kubernetes' own schema refuses. What it can't say about a real one is in tests/cluster.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from tests.components.storage.faulty import serving

VERSION = "1.33"
GROUPS = {"batch": "jobs", "": "pods", "argoproj.io": "workflows", "trainer.kubeflow.org": "trainjobs"}
PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<ns>[^/]+))?/(?P<kind>[^/]+)(?P<rest>/.+)?"
)
CUSTOM = ("recaptions", "recaptionschedules")
DISCOVERY: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "33"},
    "/api": {"versions": ["v1"]},
    "/apis": {
        "groups": [
            {"name": group, "preferredVersion": {"version": version}, "versions": [{"version": version}]}
            for group, version in (("recaption.dev", "v1alpha1"), ("apiextensions.k8s.io", "v1"))
        ]
    },
    "/api/v1": {"resources": [{"name": "namespaces", "kind": "Namespace", "namespaced": False}]},
    "/apis/apiextensions.k8s.io/v1": {
        "resources": [{"name": "customresourcedefinitions", "kind": "CustomResourceDefinition", "namespaced": False}]
    },
    "/apis/recaption.dev/v1alpha1": {
        "resources": [
            {"name": "recaptions", "kind": "Recaption", "namespaced": True},
            {"name": "recaptionschedules", "kind": "RecaptionSchedule", "namespaced": True},
        ]
    },
}
"""As far as kopf looks; each resource can be listed and watched."""
for _found in DISCOVERY.values():
    for _resource in _found.get("resources", ()):
        _resource |= {"singularName": _resource["kind"].lower(), "verbs": ["list", "watch", "patch", "get"]}

Object = dict[str, Any]


class Refused(Exception):
    """An answer with an error's code and message."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message


class Api:
    """The objects, and what goes wrong. A test sets statuses as the controllers would."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.kinds = {"jobs", "pods", "events", "workflows", "leases", *CUSTOM}
        self.kinds |= {"namespaces", "customresourcedefinitions"}
        self.objects: dict[str, dict[str, Object]] = {}
        self.changed = threading.Condition(threading.RLock())
        self.version = 1
        self.requests: Counter[str] = Counter()
        self.logs: dict[str, str] = {}
        self.forbidden: set[tuple[str, str]] = set()
        """(verb, resource): refused as RBAC refuses."""
        self.quota: str | None = None
        """Refuse to create Jobs with this message."""
        self.away: str | None = None
        """`reset`: connections are cut; `unavailable`: 503; `stranger`: 401; `lost`: done, the answer cut, once."""
        self.watching = "well"
        """`deaf`: a watch stays open and says nothing; `gone`: 410, the version is too old; `refused`: 500."""

    def put(self, kind: str, body: Object) -> Object:
        """Create or replace an object, as its controller does."""
        with self.changed:
            self.version += 1
            meta = body.setdefault("metadata", {})
            meta.setdefault("uid", str(uuid.uuid4()))
            meta.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            meta["resourceVersion"] = str(self.version)
            self.objects.setdefault(kind, {})[meta["name"]] = body
            self.changed.notify_all()
            return body

    def of(self, kind: str) -> list[Object]:
        with self.changed:
            return list(self.objects.get(kind, {}).values())

    def status(self, name: str, **values: Any) -> None:
        """Of a Job; `conditions` is a mapping from type to reason."""
        with self.changed:
            job = self.objects["jobs"][name]
            if "conditions" in values:
                conditions = values["conditions"].items()
                values["conditions"] = [{"type": t, "status": "True", "reason": r} for t, r in conditions]
            job.setdefault("status", {}).update(values)
            self.put("jobs", job)

    def pod(self, job: str, index: int, name: str | None = None, **status: Any) -> Object:
        """A pod of a Job's index, with the labels of the Job's template."""
        of = self.objects.get("jobs", {}).get(job, {}).get("spec", {}).get("template", {})
        labels = {**of.get("metadata", {}).get("labels", {}), "batch.kubernetes.io/job-name": job}
        labels["batch.kubernetes.io/job-completion-index"] = str(index)
        name = name or f"{job}-{index}-abcde"
        body = {"metadata": {"name": name, "labels": labels}, "spec": {"nodeName": "node-1"}, "status": status}
        return self.put("pods", body)

    def event(self, job: str, message: str) -> None:
        self.put(
            "events",
            {
                "metadata": {"name": f"{job}.{self.version}"},
                "involvedObject": {"kind": "Job", "name": job},
                "type": "Warning",
                "reason": "FailedCreate",
                "message": message,
            },
        )

    def wait_for(self, what: str, ready: Any, seconds: float = 20) -> None:
        """Until a condition over the objects holds."""
        with self.changed:
            assert self.changed.wait_for(ready, seconds), f"no {what} within {seconds} s"

    # What a request does; called with the lock held.

    def create(self, kind: str, body: Object) -> Object:
        name = body["metadata"]["name"]
        if kind == "jobs":
            if self.quota:
                raise Refused(403, f'jobs.batch "{name}" is forbidden: {self.quota}')
            try:
                kubernetes_validate.validate(body, VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise Refused(422, f'Job.batch "{name}" is invalid: {error}') from error
        if name in self.objects.get(kind, {}):
            raise Refused(409, f'{kind} "{name}" already exists')
        if kind in CUSTOM:
            body = {**body, "metadata": {"generation": 1, "namespace": self.namespace, **body["metadata"]}}
            body.pop("status", None)
        return self.put(kind, body)

    def patch(self, kind: str, name: str, part: str, body: Object) -> Object:
        """RFC 7386 on the object but for its status, or on the status alone."""
        found = self.get(kind, name)
        version = body.get("metadata", {}).get("resourceVersion")
        if version not in (None, found["metadata"]["resourceVersion"]):
            raise Refused(409, "the object has been modified; please apply your changes to the latest version")
        keys = ["status"] if part == "status" else [key for key in body if key != "status"]
        made = merged(found, {key: body[key] for key in keys if key in body})
        made["metadata"] = {**made["metadata"], "resourceVersion": found["metadata"]["resourceVersion"]}
        if made.get("spec") != found.get("spec"):
            made["metadata"]["generation"] = found["metadata"].get("generation", 1) + 1
        if "deletionTimestamp" in made["metadata"] and not made["metadata"].get("finalizers"):
            return self.remove(kind, name)
        return found if made == found else self.put(kind, made)

    def get(self, kind: str, name: str) -> Object:
        if name not in self.objects.get(kind, {}):
            raise Refused(404, f'{kind} "{name}" not found')
        return self.objects[kind][name]

    def delete(self, kind: str, name: str, options: Mapping[str, Any]) -> Object:
        found = self.get(kind, name)
        uid = options.get("preconditions", {}).get("uid")
        if uid not in (None, found["metadata"]["uid"]):
            raise Refused(409, f"the UID in the precondition ({uid}) does not match the UID in record")
        if found["metadata"].get("finalizers"):
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            return self.put(kind, {**found, "metadata": {"deletionTimestamp": now, **found["metadata"]}})
        return self.remove(kind, name)

    def remove(self, kind: str, name: str) -> Object:
        found = self.objects[kind].pop(name)
        if kind == "jobs":
            pods = self.objects.get("pods", {})
            for pod in [p for p, v in pods.items() if v["metadata"]["labels"]["batch.kubernetes.io/job-name"] == name]:
                del pods[pod]
        # The garbage collector.
        owned = [(k, n) for k, things in self.objects.items() for n, v in things.items() if _is_owned(v, found)]
        for other, dependent in owned:
            self.delete(other, dependent, {})
        self.version += 1
        self.changed.notify_all()
        return found

    def select(self, kind: str, labels: str, fields: str) -> list[Object]:
        return [o for o in self.of(kind) if _has_labels(o, labels) and all(_has_field(o, f) for f in _parts(fields))]


def _is_owned(thing: Object, owner: Object) -> bool:
    return any(o["uid"] == owner["metadata"]["uid"] for o in thing["metadata"].get("ownerReferences", ()))


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386, as its appendix has it."""
    if not isinstance(patch, dict):
        return patch
    made = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), value)
    return made


def _parts(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _has_labels(thing: Object, selector: str) -> bool:
    labels = thing["metadata"].get("labels", {})
    return all(
        labels.get(key) == value if equals else key in labels
        for key, equals, value in (part.partition("=") for part in _parts(selector))
    )


def _has_field(thing: Object, field: str) -> bool:
    path, _, wanted = field.partition("=")
    value: Any = thing
    for key in path.split("."):
        value = value.get(key, {})
    return bool(value == wanted)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms until the client confirms the first
    api: Api

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        api = self.api
        try:
            if api.away in ("reset", "unavailable"):
                if api.away == "reset":
                    return self._cut()
                raise Refused(503, "the server is currently unable to handle the request")
            if api.away == "stranger":
                raise Refused(401, "Unauthorized")
            if url.path in DISCOVERY:
                return self._send(200, json.dumps(DISCOVERY[url.path]))
            found = PATH.fullmatch(url.path)
            if not found:
                raise Refused(404, "page not found")
            kind, name = found["kind"], (found["rest"] or "").strip("/")
            verb = self._verb(method, name, query)
            self._check(verb, kind, name, found["ns"], found["group"] or "")
            if verb == "watch":
                return self._watch(kind, query)
            with api.changed:
                answer = self._do(verb, kind, name, json.loads(body or b"{}"), query)
                data = answer if isinstance(answer, str) else json.dumps(answer)
            if api.away == "lost" and method != "GET":
                api.away = None
                return self._cut()
            self._send(201 if verb == "create" else 200, data)
        except Refused as refused:
            status = {"kind": "Status", "status": "Failure", "code": refused.code, "message": refused.message}
            self._send(refused.code, json.dumps(status))

    @staticmethod
    def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
        if method == "GET":
            return "watch" if query.get("watch") == "true" else "get" if name else "list"
        return {"POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]

    def _check(self, verb: str, kind: str, name: str, namespace: str, group: str) -> None:
        api = self.api
        resource = f"{kind}/log" if name.endswith("/log") else kind
        api.requests[f"{verb} {resource}"] += 1
        if (verb, resource) in api.forbidden:
            raise Refused(
                403,
                f'{resource}{"." * bool(group)}{group} is forbidden: User "system:serviceaccount:{namespace}:default" '
                f'cannot {verb} resource "{resource}" in API group "{group}" in the namespace "{namespace}"',
            )
        if kind not in api.kinds:
            raise Refused(404, "the server could not find the requested resource")
        if verb == "create" and namespace != api.namespace:
            raise Refused(404, f'namespaces "{namespace}" not found')

    def _do(self, verb: str, kind: str, name: str, body: Object, query: Mapping[str, str]) -> Object | str:
        api = self.api
        if verb == "list":
            items = api.select(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))
            items = items[: int(query.get("limit", len(items)))]
            return {"kind": "List", "metadata": {"resourceVersion": str(api.version)}, "items": items}
        if verb == "create":
            return api.create(kind, body)
        if verb == "delete":
            return api.delete(kind, name, body)
        if verb == "patch":
            plain, _, part = name.partition("/")
            return api.patch(kind, plain, part, body)
        if name.endswith("/log"):
            pod = name.removesuffix("/log")
            api.get("pods", pod)
            lines = api.logs.get(pod, "").splitlines()[-int(query["tailLines"]) :]
            return "".join(f"{line}\n" for line in lines)
        return api.get(kind, name)

    def _watch(self, kind: str, query: Mapping[str, str]) -> None:
        api = self.api
        if api.watching == "refused":
            raise Refused(500, "etcdserver: leader changed")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if api.watching == "gone":
            gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
            self._chunks([json.dumps(gone)])
            return
        seconds = 600.0 if api.watching == "deaf" else float(query["timeoutSeconds"])
        since = int(query.get("resourceVersion") or 0)
        with api.changed:
            api.changed.wait_for(lambda: api.version > since and api.watching != "deaf", seconds)
            changed = [o for o in api.of(kind) if int(o["metadata"]["resourceVersion"]) > since]
            events = [json.dumps({"type": "MODIFIED", "object": o}) for o in changed]
        self._chunks(events)

    def _chunks(self, events: list[str]) -> None:
        try:
            for event in events:
                data = event.encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has gone
            self.close_connection = True

    def _send(self, code: int, answer: str) -> None:
        data = answer.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if answer.startswith("{") else "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def api_server(namespace: str = "research") -> Iterator[tuple[Api, str]]:
    """The objects and the address."""
    api = Api(namespace)
    with serving(type("BoundHandler", (Handler,), {"api": api})) as address:
        try:
            yield api, address
        finally:
            with api.changed:
                api.watching = "well"
                api.version += 1
                api.changed.notify_all()


def kubeconfig(path: Path, server: str, namespace: str) -> Path:
    """Written for another process."""
    context = {"cluster": "c", "user": "u", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "contexts": [{"name": "x", "context": context}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path

"""The operator's port: /healthz and /readyz for the kubelet, /metrics for Prometheus."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from components.base.errors import PermanentError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that a client may be silent: the kubelet waits 5, Prometheus 10

Problems = Callable[[], Iterable[str]]


@contextmanager
def serving(port: int, registry: CollectorRegistry, unhealthy: Problems, unready: Problems) -> Iterator[int]:
    """Serve probes and metrics on a port of all addresses, and yield the port; 0 takes any free one.

    Args:
        unhealthy: problems that only a restart mends, a line each.
        unready: what is missing before the operator can work, a line each.

    Raises:
        PermanentError: the port is taken.
    """
    paths = {"/healthz": _probe(unhealthy), "/readyz": _probe(unready), "/metrics": make_wsgi_app(registry)}
    try:
        server = make_server("", port, _by_path(paths), _Server, _Handler)
    except OSError as error:
        raise PermanentError(f"RECAPTION_PORT: port {port}: {error.strerror}; choose another one") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="serving", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _by_path(paths: Mapping[str, WSGIApplication]) -> WSGIApplication:
    def answer(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        found = paths.get(environ["PATH_INFO"])
        if found:
            return found(environ, start)
        return _text(start, "404 Not Found", [f"this port serves {', '.join(paths)}"])

    return answer


def _probe(problems: Problems) -> WSGIApplication:
    """Return an application that answers 200 without problems, else 503 and a line for each of them."""

    def answer(_: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        found = list(problems())
        return _text(start, "503 Service Unavailable" if found else "200 OK", found or ["ok"])

    return answer


def _text(start: StartResponse, status: str, lines: Iterable[str]) -> Iterable[bytes]:
    body = "".join(f"{line}\n" for line in lines).encode()
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each request, on IPv4 and IPv6."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log at debug level: a client that hangs up or says nothing is no error of ours."""
        log.debug("client %s: %s", client_address, sys.exception())


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a line for every probe would bury what the operator logs."""

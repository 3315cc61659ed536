"""The operator's port, asked over HTTP as the kubelet and Prometheus ask it."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry, Gauge

from components.base.errors import PermanentError
from pipelines.operator.runtime import serving as module
from pipelines.operator.runtime.serving import serving


@dataclass
class Served:
    port: int = 0
    unhealthy: list[str] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)

    def get(self, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{host}:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def served() -> Iterator[Served]:
    found, registry = Served(), CollectorRegistry()
    Gauge("recaption_answer", "of a test", registry=registry).set(42)
    with serving(0, registry, lambda: found.unhealthy, lambda: found.unready) as found.port:
        yield found


def test_health_is_a_line_per_problem(served: Served) -> None:
    assert served.get("/healthz") == (200, "ok\n")
    served.unhealthy += ["the queue's workers stand still for 95 s", "the watch of recaptions is silent for 700 s"]
    lines = "the queue's workers stand still for 95 s\nthe watch of recaptions is silent for 700 s\n"
    assert served.get("/healthz") == (503, lines)
    assert served.get("/readyz") == (200, "ok\n")
    served.unhealthy.clear()
    assert served.get("/healthz?verbose") == (200, "ok\n")


def test_readiness_is_another_matter(served: Served) -> None:
    served.unready += ["recaptions are not listed yet"]
    assert served.get("/readyz") == (503, "recaptions are not listed yet\n")
    assert served.get("/healthz") == (200, "ok\n")


def test_metrics_are_prometheus_text(served: Served) -> None:
    status, text = served.get("/metrics")
    assert status == 200
    assert "# TYPE recaption_answer gauge\nrecaption_answer 42.0\n" in text


def test_another_path_says_what_there_is(served: Served) -> None:
    assert served.get("/") == (404, "this port serves /healthz, /readyz, /metrics\n")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_cluster_of_ipv6_is_answered_too(served: Served) -> None:
    assert served.get("/healthz", "[::1]") == (200, "ok\n")


def test_who_says_nothing_is_in_nobodys_way(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
    assert served.get("/healthz") == (200, "ok\n")
    for connection in silent:
        connection.settimeout(5)
        assert connection.recv(1) == b""  # hung up on
        connection.close()
    assert capfd.readouterr() == ("", "")


def test_a_check_that_breaks_is_told_and_is_not_health(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(0, CollectorRegistry(), lambda: [str(1 / 0)], list) as port:
        assert Served(port).get("/healthz")[0] == 500
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_the_port_is_free_again_and_no_thread_is_left() -> None:
    before = threading.active_count()
    with serving(0, CollectorRegistry(), list, list) as port:
        assert Served(port).get("/readyz") == (200, "ok\n")
    with serving(port, CollectorRegistry(), list, list):
        pass
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)
    assert threading.active_count() == before


def test_a_port_that_is_taken_is_one_line(served: Served) -> None:
    with (
        pytest.raises(PermanentError, match=rf"^RECAPTION_PORT: port {served.port}: Address already in use; choose"),
        serving(served.port, CollectorRegistry(), list, list),
    ):
        pass

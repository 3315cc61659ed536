"""What a check is, what it finds, and how checks are made side by side."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from components.base.errors import PermanentError, TemporaryError
from pipelines.kubernetes.cluster import Cluster, Forbidden, Object
from pipelines.operator.runtime.settings import Settings
from pipelines.operator.runtime.tenants import Tenancy

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Endpoint

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that a check may take


class State(Enum):
    """The state of what was checked."""

    GOOD = "it is as it should be"
    BROKEN = "somebody has to do something"
    AWAY = "it could not be reached"
    OPEN = "it is optional and not there, or could not be checked"


@dataclass(frozen=True)
class Finding:
    """What a check found, in one line."""

    state: State
    what: str
    remedy: str = ""


def good(what: str) -> Finding:
    return Finding(State.GOOD, what)


def broken(what: str, remedy: str) -> Finding:
    return Finding(State.BROKEN, what, remedy)


def open_(what: str, remedy: str = "") -> Finding:
    return Finding(State.OPEN, what, remedy)


class Unasked(Exception):
    """A check had nobody to ask; the message says why."""


@dataclass(frozen=True)
class Context:
    """The cluster and the settings that are checked."""

    cluster: Cluster | None
    """None where there is no API server to ask: its own check says why."""
    settings: Settings
    """The operator's settings, as far as they can be read."""
    namespace: str
    """Namespace of the runs' pods."""
    operator_namespace: str
    kfp: Endpoint | None = None
    storage: str | None = None

    @property
    def tenancies(self) -> list[Tenancy]:
        """Return what holds for those whose pods run in the namespace: for all where KFP has one user."""
        tenants = self.settings.tenants
        return tenants.all() if self.namespace == self.settings.kfp_namespace else [tenants.of(self.namespace)]

    @property
    def api(self) -> Cluster:
        """The API server. Raises Unasked if there is none to ask."""
        if self.cluster is None:
            raise Unasked("not asked: there is no API server to ask")
        return self.cluster

    def get(self, path: str) -> Object | None:
        """Return what is at a path of the API server; None where nothing is. Raises like Cluster.ask."""
        return self.api.ask("GET", path)


Check = Callable[[Context], Finding]


def examine(checks: Sequence[Check], context: Context, patience: float = PATIENCE) -> list[Finding]:
    """Run the checks side by side and return their findings; one that takes too long, or fails, stops no other."""
    futures = [_begun(check, context) for check in checks]
    done, _ = wait(futures, patience)
    late = Finding(State.AWAY, f"no answer within {patience:g} s", "look whether it is overloaded, and try again")
    return [future.result() if future in done else late for future in futures]


def _begun(check: Check, context: Context) -> Future[Finding]:
    """Run a check in a daemon thread, which the process doesn't wait for at its end, as it would for an executor's."""
    future: Future[Finding] = Future()
    threading.Thread(target=lambda: future.set_result(find(check, context)), daemon=True).start()
    return future


def find(check: Check, context: Context) -> Finding:
    """Run one check; an error's message says what, and after the semicolon what to do."""
    try:
        return check(context)
    except Unasked as nobody:
        return open_(str(nobody))
    except Forbidden as error:
        what, _, remedy = str(error).partition("; ")
        return open_(f"not checked: {what}", remedy)
    except PermanentError as error:
        what, _, remedy = str(error).partition("; ")
        return broken(what, remedy)
    except TemporaryError as error:
        what, _, remedy = str(error).partition("; ")
        return Finding(State.AWAY, what, remedy or "look whether it runs, and whether this machine may reach it")
    except Exception as error:
        log.exception("a check failed")
        return broken(f"not checked: {type(error).__name__}: {error}", "this is a bug of the doctor: report it")

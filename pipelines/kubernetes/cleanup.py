"""Ends what a run left in the cluster. A KFP run can end in four ways, and each is caught:

- its launcher gets SIGTERM: it asks whether the Workflow is being ended (KFP's terminate sets the Workflow's deadline
  to 0) and then deletes its Jobs; a launcher that is only evicted lets them go on, the next one adopts them;
- a step fails, or all succeed: the exit step runs `cleanup`, which deletes by label;
- the Workflow is deleted: it owns the Jobs, the garbage collector takes them;
- a launcher that is killed without a word, in a run that is terminated: the operator calls `cleanup`; where there is no
  operator the workers stop by themselves once the launcher's heartbeat in status.json is stale (see `worker`), and
  activeDeadlineSeconds is the last bound.
"""

from __future__ import annotations

import logging

from pipelines.kubernetes.cluster import JOBS, TRAIN_JOBS, Cluster, Object
from pipelines.kubernetes.jobs import RUN, run_label

log = logging.getLogger(__name__)


def cleanup(cluster: Cluster, run: str) -> list[str]:
    """Delete every Job and TrainJob of a run, whoever started them; return what was deleted, `kind/name`."""
    labels = f"{RUN}={run_label(run)}"
    found = [(kind, thing) for kind in (JOBS, TRAIN_JOBS) for thing in cluster.find(kind, labels)[0]]
    return [_delete(cluster, kind, thing) for kind, thing in found]


def _delete(cluster: Cluster, kind: str, thing: Object) -> str:
    meta = thing["metadata"]
    cluster.delete(kind, meta["name"], meta["uid"])
    name = f"{kind.partition('.')[0]}/{meta['name']}"
    log.info("deleted %s", name)
    return name

"""The rates that earlier runs measured: `rates/<run>.json` of a storage has the work of each, by pace and pool.

A pace is what takes as long per sample: a stage with its model. So a run is predicted by what was computed before on
nodes of the same pool's name, for whichever pool of images and recipe that was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from components.base.errors import RecaptionError
from components.engine.registry import column_stage
from components.pool.run import Run
from components.recipe.costs import Work, read_work
from components.storage.interface import Storage

log = logging.getLogger(__name__)

FOLDER = "rates"
RUNS = 200  # runs whose rates are read
READERS = 16


def pace_of(run: Run, key: str) -> str:
    """Name the pace of a column or step of a run."""
    if key in run.nodes:
        spec = run.nodes[key].spec
        return column_stage(spec.stage).pace(spec)
    scale = run.spec.train.scale if key == "train" and run.spec.train else ""
    return f"{key}.{scale if isinstance(scale, str) else scale.model}" if scale else key


def keep_rates(run: Run) -> None:
    """Write what this run has measured so far where later plans look for it.

    A storage that fails here only costs a later prediction.
    """
    found: dict[str, dict[str, Work]] = {}
    for key, entry in run.status().get("stages", {}).items():
        pools = found.setdefault(pace_of(run, key), {}) if entry.get("work") else {}
        for pool, work in read_work(entry.get("work")).items():
            pools[pool] = pools[pool].plus(work.seconds, work.samples) if pool in pools else work
    if not found:
        return
    value = {pace: {pool: work.to_json() for pool, work in pools.items()} for pace, pools in found.items()}
    try:
        run.storage.write(f"{FOLDER}/{run.name}.json", json.dumps(value, indent=1).encode())
    except RecaptionError as error:
        log.warning("%s/%s.json: the measured rates are not kept: %s", FOLDER, run.name, error)


def measured_rates(storage: Storage) -> Mapping[tuple[str, str], Work]:
    """Return the work of earlier runs by (pace, pool); a file that isn't as `keep_rates` writes it is left out."""
    paths = [entry.path for entry in islice(storage.list(f"{FOLDER}/"), RUNS)]
    found: dict[tuple[str, str], Work] = {}
    with ThreadPoolExecutor(READERS) as readers:
        for path, data in zip(paths, readers.map(storage.read, paths), strict=True):
            try:
                listed = [
                    (pace, pool, w) for pace, pools in json.loads(data).items() for pool, w in read_work(pools).items()
                ]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s/%s: not as recaption writes it (%s); its rates are left out", storage.uri, path, error)
                continue
            for pace, pool, work in listed:
                known = found.get((pace, pool))
                same = known and (known.devices, known.unit) == (work.devices, work.unit)
                found[pace, pool] = known.plus(work.seconds, work.samples) if known and same else work
    return found

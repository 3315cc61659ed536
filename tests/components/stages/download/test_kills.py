"""Killed anywhere and run again, the pool is the same; told to stop, a worker stops at once, nothing half-written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.components.stages.download.conftest import Pool, write_candidates
from tests.components.stages.download.test_shards import files
from tests.components.stages.download.web import Answer, Names, Web, silent
from tests.pools import jpeg

SHARDS, EACH = 3, 30

WORKER = """
import sys, tempfile
from pathlib import Path
from components.recipe.sources import Download
from components.stages.download.shard import Candidates
from components.stages.download.task import download
from components.base.errors import leaving_on_sigterm
from components.storage.local import LocalStorage

def main():
    root = Path(sys.argv[1])
    tempfile.tempdir = str(root / "scratch")
    names = sorted(path.stem for path in (root / "candidates").iterdir())
    todo = [Candidates(name, f"candidates/{name}.parquet") for name in names]
    patience = {"connect_timeout": 600.0, "read_timeout": 600.0, "timeout": 600.0}
    options = Download(allow_networks=["127.0.0.0/8"], per_host_rate=1000.0, per_host_connections=8, **patience)
    show = lambda candidates, shards: print(candidates, shards, flush=True)
    download(todo, options, LocalStorage(root), "shards", processes=1, progress=show)

if __name__ == "__main__":
    with leaving_on_sigterm("bye"):
        main()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    script = folder / "worker.py"
    script.write_text(WORKER)
    (folder / "scratch").mkdir(exist_ok=True)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    return subprocess.Popen([sys.executable, str(script), str(folder)], env=env, stdout=subprocess.PIPE, text=True)


def candidates(folder: Path, web: Web, shards: int = SHARDS) -> None:
    for shard in range(shards):
        urls = [web.url(f"/{shard}/{i}") for i in range(EACH)]
        write_candidates(folder / f"candidates/{shard:08d}.parquet", urls, shard * EACH)


@pytest.fixture(scope="module")
def site() -> Iterator[Web]:
    """One server for all tests whose shards are compared: their files have its port."""
    with Web() as found:
        yield found


def serve(web: Web, last: Callable[[], bool] = lambda: True) -> None:
    """Serve the candidates: every third has no image, some answer late, and the very last one once `last` is true."""
    for shard in range(SHARDS):
        for i in range(EACH):
            web.pages[f"/{shard}/{i}"] = Answer(
                jpeg(shard * EACH + i, (600, 400)), status=404 if i % 3 == 0 else 200, delay=0.002 * (i % 7)
            )
    web.pages[f"/{SHARDS - 1}/{EACH - 1}"] = Answer(jpeg(0), when=last)


def children_of(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def running(processes: list[int]) -> list[int]:
    alive = []
    for pid in processes:
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            alive.append(pid)
    return alive


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, site: Web) -> dict[str, str]:
    """Return the files of a download that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    serve(site)
    candidates(folder, site)
    worker = start(folder)
    worker.communicate()
    assert worker.returncode == 0
    return files(folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_run_again(tmp_path: Path, site: Web, expected: dict[str, str], how: signal.Signals) -> None:
    kills, chance = 0, random.Random(how)
    serve(site, last=lambda: kills == 4)
    candidates(tmp_path, site)
    while kills < 4:
        done = len(records(tmp_path))
        lines = (SHARDS - done) * (EACH + 1) - 1  # of progress, before the last candidate
        worker = start(tmp_path)
        assert worker.stdout
        for _ in range(chance.randrange(1, min(lines, 2 * EACH))):
            assert worker.stdout.readline()
        children = children_of(worker.pid)
        worker.send_signal(how)
        worker.communicate()
        kills += 1
        assert worker.returncode == (-9 if how == signal.SIGKILL else 143)
        deadline = time.monotonic() + 60
        while running(children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running(children)
        for value in records(tmp_path):
            assert (tmp_path / value["tar"]).stat().st_size == value["tar_bytes"]
            assert (tmp_path / value["parquet"]).stat().st_size == value["parquet_bytes"]
    worker = start(tmp_path)
    worker.communicate()
    assert worker.returncode == 0
    assert files(tmp_path) == expected
    if how == signal.SIGTERM:
        assert list((tmp_path / "scratch").iterdir()) == []


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder / "shards").glob("*.done.json")]


def test_told_to_stop_it_stops_at_once(tmp_path: Path) -> None:
    """Though it waits for servers that don't answer, and would do so for ten minutes."""
    with Web() as web:
        web.pages = {f"/0/{i}": silent for i in range(EACH)}
        candidates(tmp_path, web, 1)
        worker = start(tmp_path)
        while not web.requests:
            time.sleep(0.02)
        worker.send_signal(signal.SIGTERM)
        worker.communicate()
        assert worker.returncode == 143
    assert not (tmp_path / "shards").exists()


def test_an_interrupted_caller_leaves_nothing_running(pool: Pool, web: Web) -> None:
    """Here the progress function stands for a signal: it raises in the caller's thread."""

    class Stop(BaseException):
        pass

    def stop(candidates: int, shards: int) -> None:
        if candidates:
            raise Stop

    web.pages = {"/": Answer(jpeg()), "/silent": silent}
    before = threading.active_count()
    with pytest.raises(Stop):
        pool.download(
            [web.url("/silent")] * 3 + [web.url()] * 20,
            per_host_connections=8,
            read_timeout=600.0,
            timeout=600.0,
            progress=stop,
            names=lambda: Names({}),  # aiodns keeps a thread
        )
    assert threading.active_count() == before, threading.enumerate()
    assert not (pool.folder / "shards").exists()

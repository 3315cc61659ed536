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
from pathlib import Path

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
from components.base.errors import Terminated, stop_on_sigterm
from components.storage.local import LocalStorage

if __name__ == "__main__":
    stop_on_sigterm()
    root = Path(sys.argv[1])
    tempfile.tempdir = str(root / "scratch")
    names = sorted(path.stem for path in (root / "candidates").iterdir())
    todo = [Candidates(name, f"candidates/{name}.parquet") for name in names]
    options = Download(allow_networks=["127.0.0.0/8"], per_host_rate=1000.0, per_host_connections=8)
    show = lambda candidates, shards: print(candidates, shards, flush=True)
    try:
        download(todo, options, LocalStorage(root), "shards", processes=1, progress=show)
    except Terminated as stopped:
        sys.exit(stopped.exit_code)
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


def serve(web: Web) -> None:
    """Every third has no image; some answer late."""
    for shard in range(SHARDS):
        for i in range(EACH):
            web.pages[f"/{shard}/{i}"] = Answer(
                jpeg(shard * EACH + i, (600, 400)), status=404 if i % 3 == 0 else 200, delay=0.002 * (i % 7)
            )


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
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is there after a download that nobody disturbed, under the port that all tests use."""
    folder = tmp_path_factory.mktemp("whole")
    with Web("127.5.5.5", 18_755) as web:
        serve(web)
        candidates(folder, web)
        worker = start(folder)
        assert worker.wait(60) == 0
        worker.communicate()
    return files(folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_run_again(tmp_path: Path, expected: dict[str, str], how: signal.Signals) -> None:
    with Web("127.5.5.5", 18_755) as web:
        serve(web)
        candidates(tmp_path, web)
        finished, kills, chance = False, 0, random.Random(how)
        while not finished:
            worker = start(tmp_path)
            assert worker.stdout
            if kills < 4:
                wanted = chance.randrange(1, 50)  # lines of progress before the kill: up to a shard and a half
                for _ in range(wanted):
                    if not worker.stdout.readline():
                        break
                children = children_of(worker.pid)
                worker.send_signal(how)
                kills += 1
            code = worker.wait(30)
            worker.communicate()
            finished = code == 0
            if not finished:
                assert code == (-9 if how == signal.SIGKILL else 143)
                deadline = time.monotonic() + 5
                while running(children) and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert not running(children)
            for record in (tmp_path / "shards").glob("*.done.json"):
                value = json.loads(record.read_text())
                assert (tmp_path / value["tar"]).stat().st_size == value["tar_bytes"]
                assert (tmp_path / value["parquet"]).stat().st_size == value["parquet_bytes"]
        assert kills >= 2
    assert files(tmp_path) == expected
    if how == signal.SIGTERM:
        assert list((tmp_path / "scratch").iterdir()) == []


def test_told_to_stop_it_stops_at_once(tmp_path: Path) -> None:
    """Though it waits for servers that don't answer."""
    with Web() as web:
        web.pages = {f"/0/{i}": silent for i in range(EACH)}
        candidates(tmp_path, web, 1)
        worker = start(tmp_path)
        deadline = time.monotonic() + 20
        while not web.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        assert web.requests
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 143
        worker.communicate()
        assert time.monotonic() - began < 5
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
            read_timeout=60.0,
            timeout=60.0,
            progress=stop,
            names=lambda: Names({}),  # aiodns keeps a thread
        )
    assert threading.active_count() == before, threading.enumerate()
    assert not (pool.folder / "shards").exists()

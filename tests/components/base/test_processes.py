"""Processes that are left alone by the signals to the process group of a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLOW = """
import time
from pathlib import Path
Path("begun").touch()
time.sleep(0.5)
def work():
    return 1
"""
MAIN = """
import signal
from concurrent.futures import ProcessPoolExecutor
from components.base.processes import UndisturbedContext

class Late:
    def __reduce__(self):
        return (__import__, ("slow",))  # what a new process imports before it runs any code of ours

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = ProcessPoolExecutor(1, mp_context=UndisturbedContext())
    try:
        pool.submit(len, Late()).exception()
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)
        print("stopped", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_process_imports_says_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "main.py").write_text(MAIN)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.getcwd()])}
    child = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        while child.poll() is None and not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.killpg(child.pid, sent)
        shown, said = child.communicate(timeout=30)
    finally:
        child.kill()
    assert (shown, said) == ("stopped\n", "")

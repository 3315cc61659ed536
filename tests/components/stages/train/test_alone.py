"""A training on one machine needs nothing of the network, not even a name for the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.privileges import without_network

LONGEST = 90  # seconds; torch itself goes on asking for a name that does not resolve for 11 minutes

CHILD = """
import socket, sys
from pathlib import Path
from components.stages.train import stage
from components.stages.train.nodes import Nodes
from tests.components.stages.train.conftest import make_training

try:
    socket.getaddrinfo(socket.gethostname(), None)
except socket.gaierror:
    stage.this_node = lambda: Nodes(processes=2)  # one alone would not have to find another
    stage.TrainStep().run(make_training(Path(sys.argv[1]), checkpoints=1))
else:
    sys.exit("this machine's name resolves")
"""


@pytest.mark.slow
def test_a_machine_whose_name_does_not_resolve_trains(tmp_path: Path) -> None:
    command = without_network(sys.executable, "-c", CHILD, str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST)
    assert done.returncode == 0, done.stderr[-2000:]
    (model,) = tmp_path.glob("out/models/*/model.json")
    assert json.loads(model.read_text())["world_size"] == 2

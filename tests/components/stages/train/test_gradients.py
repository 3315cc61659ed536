"""Nodes without a GPU follow the gradient of the whole batch, as one would alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.recipe.training import Train
from components.stages.train.arguments import trainer_arguments
from components.stages.train.batch_plan import make_plan
from components.stages.train.scales import scale_of
from components.stages.train.trainer import ALONE

RANK = """
import json, sys
import torch
import torch.distributed as dist
from open_clip.factory import create_loss
from open_clip_train.params import parse_args
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, images, texts):
        return normalize(self.image(images), dim=-1), normalize(self.text(texts), dim=-1), self.scale.exp()

def gradients(model, rank, count):
    args = parse_args(json.loads(sys.argv[1]))
    args.rank, args.world_size, args.distill = rank, count, False
    mine = slice(rank * 8 // count, (rank + 1) * 8 // count)
    create_loss(args)(*model(images[mine], texts[mine])).backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}

dist.init_process_group("gloo")
torch.manual_seed(0)
model, images, texts = Towers(), torch.randn(8, 8), torch.randn(8, 8)
whole = gradients(model, 0, 1)
model.zero_grad()
parts = gradients(DistributedDataParallel(model), dist.get_rank(), dist.get_world_size())
if dist.get_rank() == 0:
    print(json.dumps({name: float((parts[name].norm() / whole[name].norm())) for name in whole}))
    print(json.dumps({name: bool(torch.allclose(parts[name], whole[name], atol=1e-6)) for name in whole}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_nodes_have_the_gradient_of_one(tmp_path: Path) -> None:
    scale, multiple = scale_of(Train(scale="debug"))
    plan = make_plan(scale, 2, 1, multiple)
    arguments = trainer_arguments(scale, plan, model="ViT-B-32", seed=0, data="D", logs="L", name="N", gpu=False)
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", *ALONE, "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(program), json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ratios, same = map(json.loads, done.stdout.splitlines()[-2:])
    assert all(same.values()), ratios

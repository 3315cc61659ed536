"""Which GPUs the processes of one machine take: those that the user leaves them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from pipelines.execution.local import _gpus

LISTING = "GPU 0: NVIDIA H100 (UUID: GPU-1)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"  # of nvidia-smi -L


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, LISTING))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("chosen", "slots"),
    [("6,7", ["6", "7"]), ("1", ["1"]), ("GPU-2, GPU-1,", ["GPU-2", "GPU-1"]), ("", [""])],
)
def test_the_users_choice_of_gpus_is_kept(chosen: str, slots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert _gpus() == slots


def test_otherwise_there_are_all_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _gpus() == ["0", "1"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert _gpus() == ["0"]  # of a machine without one, it says nothing

"""kfp.local with the containers' own commands as subprocesses: what DockerRunner does, without Docker.

kfp 2.17's SubprocessRunner refuses container components, doesn't find a task's output as the input of a condition, and
registers an output artifact only where the container wrote an output file.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kfp import local
from kfp.local import config, executor_output_utils, io, subprocess_task_handler
from kfp.local.orchestrator import task_executor

HANDLER = subprocess_task_handler.SubprocessTaskHandler


@contextmanager
def containers_as_processes(root: Path) -> Iterator[list[list[str]]]:
    """Within it, calling a pipeline runs it here; the commands of its containers, in the order they ran in."""
    commands: list[list[str]] = []
    run = subprocess_task_handler.run_local_subprocess
    outputs = executor_output_utils.get_outputs_from_executor_output
    parent_input = io.IOStore.get_parent_input

    def recorded(full_command: list[str], env_vars: Any = None) -> int:
        commands.append(full_command)
        return int(run(full_command, env_vars))

    def with_artifacts(executor_output: Any, executor_input: Any, component_spec: Any) -> Any:
        for name, artifacts in executor_input.outputs.artifacts.items():
            if name not in executor_output.artifacts:
                executor_output.artifacts[name].CopyFrom(artifacts)
        return outputs(executor_output, executor_input, component_spec)

    def of_a_task_too(store: Any, key: str) -> Any:
        for task, values in store._task_output_data.items():
            for name, value in values.items():
                if key in (f"pipelinechannel--{task}-{name}", f"{task}-{name}"):
                    return value
        return parent_input(store, key)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp warns that an image is no Python image
        patch.setattr(HANDLER, "validate_not_container_component", lambda *_: None)
        patch.setattr(subprocess_task_handler, "run_local_subprocess", recorded)
        patch.setattr(executor_output_utils, "get_outputs_from_executor_output", with_artifacts)
        patch.setattr(io.IOStore, "get_parent_input", of_a_task_too)
        patch.setattr(config.LocalExecutionConfig, "instance", None)
        patch.setattr(task_executor, "range", lambda _: range(1), raising=False)  # KFP 2.17 retries no failed step
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("RECAPTION_LAUNCHER", "local")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        yield commands

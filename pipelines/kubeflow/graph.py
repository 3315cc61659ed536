"""The pipeline's graph: plan, then a node per group of stages, then the report; cleanup at the end in any case.

The number of nodes is the same for every recipe: a node works for all mixtures and captioners, and a node that needs
many pods starts them itself (`recaption launch`). Only the run's address and its claimant pass from node to node.
KFP's own cache is off everywhere: done.json files are the cache, and "find the newest dump" must never be skipped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

from kfp import dsl, kubernetes

from components.engine.registry import stages
from pipelines.kubeflow.naming import ABOUT, NAME
from pipelines.kubeflow.parameters import Parameter, parameters
from pipelines.kubernetes.pod_settings import PodSettings
from pipelines.kubernetes.secrets import SECRET_KEYS
from pipelines.planning.graph_nodes import FANNED_OUT, GROUPS, STAGE

USER = 65532  # of images/Dockerfile
SCRATCH = "/scratch"  # HOME and TMPDIR of the images
EVICTIONS = 5  # times that a step is started again after its pod was evicted. KFP retries no step that fails by itself
FOREVER = "365d"  # after its first start Argo ends a step that was started again; KFP's default is 1 h
EXECUTOR_INPUT = "{{$}}"  # KFP puts JSON here: the parameters, and the paths of the outputs
LAUNCHER_GIB = 1.0
ENDS = ("recipe", "claim")  # parameters from which the exit step knows which run has ended

Component: TypeAlias = Any  # kfp's BaseComponent; kfp has no types
Task: TypeAlias = Any  # its PipelineTask


def pipeline(images: str = NAME, tag: str | None = None, pods: PodSettings | None = None) -> Component:
    """Build the pipeline, with these images as the parameters' defaults, and what all its pods get."""
    inputs, harden = parameters(images, tag), partial(_harden, pods or PodSettings())

    def graph(*values: Any) -> None:
        given = dict(zip([p.name for p in inputs], values, strict=True))
        end = _cleanup()(**{name: given[name] for name in ENDS}, kfp_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        harden(end, "cleanup", given["operator_image"], given["job_secret"], LAUNCHER_GIB)
        with dsl.ExitHandler(end, name="run"):
            planned = _plan(inputs)(**given, kfp_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
            harden(planned, "plan", given["operator_image"], given["job_secret"], LAUNCHER_GIB)
            with dsl.If(planned.outputs["mine"] == True, name="mine"):  # noqa: E712 — builds a condition
                _line(planned.outputs["run"], planned.outputs["claimant"], given, harden)

    graph.__doc__ = "\n".join([ABOUT, "", "Args:", *(f"    {p.name}: {p.description}" for p in inputs)])
    _sign(graph, [_input(p, p.default) for p in inputs])
    return dsl.pipeline(name=NAME, description=ABOUT)(graph)


def _line(run: Any, claimant: Any, given: dict[str, Any], harden: Callable[..., None]) -> None:
    """Chain the nodes one after the other: each keeps its record in the run's one status.json."""
    before: Task | None = None
    for name, task, image, memory_gib in _nodes({"run": run, "claimant": claimant}, given):
        harden(task, name, image, given["job_secret"], memory_gib)
        if before:
            task.after(before)
        before = task


def _nodes(planned: dict[str, Any], given: dict[str, Any]) -> Iterator[tuple[str, Task, Any, float]]:
    """Yield the name, task, image and memory of each node, in order."""
    for name in GROUPS:
        stage = stages()[STAGE.get(name, name)]
        image = given["gpu_image" if stage.needs.gpu else "cpu_image"]
        if name in FANNED_OUT:
            pods = {"image": image, "account": given["job_service_account"], "secret": given["job_secret"]}
            yield name, _launch(name)(**planned, **pods), given["operator_image"], LAUNCHER_GIB
        if name == "report":
            yield name, _report()(**planned), image, stage.needs.gib(1)
        elif name not in FANNED_OUT:
            yield name, _step(name)(**planned), image, stage.needs.gib(1)


def _plan(inputs: Sequence[Parameter]) -> Component:
    """Return the component that plans and claims a run."""

    def plan(*_: Any) -> dsl.ContainerSpec:
        """Check the recipe, plan the run and claim it; with a schedule, a run of the newest dump."""
        return dsl.ContainerSpec(image=NAME, command=["recaption", "kfp", "plan"], args=[EXECUTOR_INPUT])

    texts = [(name, dsl.OutputPath(str)) for name in ("run", "claimant", "reason")]
    outputs = [*texts, ("mine", dsl.OutputPath(bool))]
    return _component(plan, [*map(_input, inputs), ("kfp_run", str), *outputs])


def _cleanup() -> Component:
    """Return the component of the exit step."""

    def cleanup(*_: Any) -> dsl.ContainerSpec:
        """Delete the run's Jobs; release the claim of a run that failed."""
        return dsl.ContainerSpec(image=NAME, command=["recaption", "kfp", "cleanup"], args=[EXECUTOR_INPUT])

    return _component(cleanup, [(name, str) for name in (*ENDS, "kfp_run")])


def _launch(group: str) -> Component:
    """Return the component that launches a group's Jobs."""

    def launch(run: str, claimant: str, image: str, account: str, secret: str) -> dsl.ContainerSpec:
        options = ["--claimant", claimant, "--image", image, "--service-account", account, "--secret", secret]
        return dsl.ContainerSpec(image=NAME, command=["recaption", "launch", group], args=[*options, run])

    return _component(launch, [(name, str) for name in ("run", "claimant", "image", "account", "secret")], group)


def _step(name: str) -> Component:
    """Return the component that does a stage's work itself."""

    def step(run: str, claimant: str) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image=NAME, command=["recaption", "stage", name], args=["--claimant", claimant, run])

    return _component(step, [("run", str), ("claimant", str)], name)


def _report() -> Component:
    """Return the component that writes the report and its artifacts."""

    def report(run: str, claimant: str, table: Any, page: Any, metrics: Any) -> dsl.ContainerSpec:
        """Write the report, and its table, page and numbers as artifacts."""
        files = ["--table", table.path, "--page", page.path]
        return dsl.ContainerSpec(image=NAME, command=["recaption", "kfp", "report"], args=[*files, EXECUTOR_INPUT])

    artifacts = [
        ("table", dsl.Output[dsl.Markdown]),
        ("page", dsl.Output[dsl.HTML]),
        ("metrics", dsl.Output[dsl.Metrics]),
    ]
    return _component(report, [("run", str), ("claimant", str), *artifacts])


def _harden(pods: PodSettings, task: Task, name: str, image: Any, secret: Any, memory_gib: float) -> None:
    """Give a node what all nodes have: image, resources, no root, no cache, storage keys, scratch, bounded retries."""
    memory = f"{round(memory_gib * 1024)}Mi"
    task.set_display_name(name).set_caching_options(False).set_container_image(image)
    task.set_cpu_request("500m").set_cpu_limit("4").set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(EVICTIONS, backoff_duration="30s", backoff_factor=1.0, backoff_max_duration=FOREVER)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.use_secret_as_env(task, secret, {key: key for key in SECRET_KEYS}, optional=True)
    for variable, value in pods.as_environment().items():
        task.set_env_variable(variable, value)
    if pods.pull_secrets:
        kubernetes.set_image_pull_secrets(task, [*pods.pull_secrets])
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit="20Gi")


def _component(function: Callable[..., dsl.ContainerSpec], inputs: list[tuple[Any, ...]], name: str = "") -> Component:
    """Make a component of a function, with inputs of these names and types."""
    _sign(function, inputs)
    function.__name__ = name or function.__name__
    return dsl.container_component(function)


def _input(parameter: Parameter, *default: Any) -> tuple[Any, ...]:
    """Return a parameter as an input: name, type and, if given, default."""
    return (parameter.name, str, *default)


def _sign(function: Callable[..., object], inputs: list[tuple[Any, ...]]) -> None:
    """Give a function the signature that kfp reads a component's inputs from: (name, type[, default]) each."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(n, kind, annotation=t, **({"default": d[0]} if d else {})) for n, t, *d in inputs]
    function.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    function.__annotations__ = {name: annotation for name, annotation, *_ in inputs}

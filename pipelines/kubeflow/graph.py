"""The pipeline's graph: plan, then nodes for the groups of stages, then the report; cleanup at the end in any case.

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
from components.storage.secret import FOLDER as SECRET_FOLDER
from pipelines.kubeflow.naming import ABOUT, NAME
from pipelines.kubeflow.parameters import Parameter, parameters
from pipelines.kubernetes.pod_settings import PodSettings
from pipelines.planning.graph_nodes import FANNED_OUT, NODES, needs_gpu

USER = 65532  # of images/Dockerfile
STEP = ("app.kubernetes.io/part-of", "recaption")  # label of KFP's pods; those that are launched have more
SCRATCH = "/scratch"  # HOME and TMPDIR of the images
EVICTIONS = 5  # times that a step is started again after its pod was evicted. KFP retries no step that fails by itself
FOREVER = "365d"  # after its first start Argo ends a step that was started again; KFP's default is 1 h
EXECUTOR_INPUT = "{{$}}"  # KFP puts JSON here: the parameters, and the paths of the outputs
LAUNCHER_GIB = 1.0
ENDS = ("recipe", "claim", "operator_image")  # parameters from which the exit step knows which run has ended

INPUTS = ("run", "claimant", "image")  # inputs of every node; `image` is its own

Component: TypeAlias = Any  # kfp's BaseComponent; kfp has no types
Task: TypeAlias = Any  # its PipelineTask


def pipeline(images: str = NAME, tag: str | None = None, pods: PodSettings | None = None) -> Component:
    """Build the pipeline, with these images as the parameters' defaults, and what all its pods get."""
    inputs, harden = parameters(images, tag), partial(_harden, pods or PodSettings())

    def graph(*values: Any) -> None:
        given = dict(zip([p.name for p in inputs], values, strict=True))
        end = _cleanup()(**{name: given[name] for name in ENDS}, kfp_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        harden(end, "cleanup", given["job_secret"], LAUNCHER_GIB)
        with dsl.ExitHandler(end, name="run"):
            planned = _plan(inputs)(**given, kfp_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
            harden(planned, "plan", given["job_secret"], LAUNCHER_GIB)
            with dsl.If(planned.outputs["mine"] == True, name="mine"):  # noqa: E712 — builds a condition
                _line(planned.outputs["run"], planned.outputs["claimant"], given, harden)

    graph.__doc__ = "\n".join([ABOUT, "", "Args:", *(f"    {p.name}: {p.description}" for p in inputs)])
    _sign(graph, [_input(p, p.default) for p in inputs])
    return dsl.pipeline(name=NAME, description=ABOUT)(graph)


def _line(run: Any, claimant: Any, given: dict[str, Any], harden: Callable[..., None]) -> None:
    """Chain the nodes one after the other: each keeps its record in the run's one status.json."""
    before: Task | None = None
    for name, task, memory_gib in _nodes({"run": run, "claimant": claimant}, given):
        harden(task, name, given["job_secret"], memory_gib)
        if before:
            task.after(before)
        before = task


def _nodes(planned: dict[str, Any], given: dict[str, Any]) -> Iterator[tuple[str, Task, float]]:
    """Yield the name, task and memory of each node, in order."""
    for name, groups in NODES.items():
        if set(groups) <= set(FANNED_OUT):
            images = sorted({"gpu" if needs_gpu(group) else "cpu" for group in groups})
            pods = {"account": given["job_service_account"], "secret": given["job_secret"]}
            pods |= {"image": given["operator_image"], **{kind: given[f"{kind}_image"] for kind in images}}
            yield name, _launch(name, groups, images)(**planned, **pods), LAUNCHER_GIB
        else:
            component = _report() if name == "report" else _step(name, groups)
            memory_gib = max(stages()[group].needs.gib(1) for group in groups)
            yield name, component(**planned, image=given["cpu_image"]), memory_gib


def _plan(inputs: Sequence[Parameter]) -> Component:
    """Return the component that plans and claims a run."""

    def plan(*_: Any) -> dsl.ContainerSpec:
        """Check the recipe, plan the run and claim it; with a schedule, a run of the newest dump."""
        return _container("kfp", "plan", args=[EXECUTOR_INPUT], image="operator_image")

    texts = [(name, dsl.OutputPath(str)) for name in ("run", "claimant", "reason")]
    outputs = [*texts, ("mine", dsl.OutputPath(bool))]
    return _component(plan, [*map(_input, inputs), ("kfp_run", str), *outputs])


def _cleanup() -> Component:
    """Return the component of the exit step."""

    def cleanup(*_: Any) -> dsl.ContainerSpec:
        """Delete the run's Jobs; release the claim of a run that failed."""
        return _container("kfp", "cleanup", args=[EXECUTOR_INPUT], image="operator_image")

    return _component(cleanup, [(name, str) for name in (*ENDS, "kfp_run")])


def _launch(name: str, groups: Sequence[str], images: Sequence[str]) -> Component:
    """Return the component that launches the Jobs of these groups, one group after the other."""
    inputs = (*INPUTS, "account", "secret", *images)

    def launch(*values: Any) -> dsl.ContainerSpec:
        given = dict(zip(inputs, values, strict=True))
        options = ["--claimant", given["claimant"], "--service-account", given["account"], "--secret", given["secret"]]
        for kind in images:
            options += [f"--{kind}-image", given[kind]]
        return _container("launch", ",".join(groups), args=[*options, given["run"]])

    return _component(launch, [(name, str) for name in inputs], name)


def _step(name: str, groups: Sequence[str]) -> Component:
    """Return the component that does the work of these stages itself."""

    def step(run: str, claimant: str, image: str) -> dsl.ContainerSpec:
        return _container("stage", ",".join(groups), args=["--claimant", claimant, run])

    return _component(step, [(name, str) for name in INPUTS], name)


def _report() -> Component:
    """Return the component that writes the report and its artifacts."""

    def report(run: str, claimant: str, image: str, table: Any, page: Any, metrics: Any) -> dsl.ContainerSpec:
        """Write the report, and its table, page and numbers as artifacts."""
        files = ["--table", table.path, "--page", page.path]
        return _container("kfp", "report", args=[*files, EXECUTOR_INPUT])

    artifacts = [
        ("table", dsl.Output[dsl.Markdown]),
        ("page", dsl.Output[dsl.HTML]),
        ("metrics", dsl.Output[dsl.Metrics]),
    ]
    return _component(report, [*((name, str) for name in INPUTS), *artifacts])


def _harden(pods: PodSettings, task: Task, name: str, secret: Any, memory_gib: float) -> None:
    """Give a node what all nodes have: resources, no root, no cache, storage keys, scratch, bounded retries."""
    memory = f"{round(memory_gib * 1024)}Mi"
    task.set_display_name(name).set_caching_options(False)
    task.set_cpu_request("500m").set_cpu_limit("4").set_memory_request(memory).set_memory_limit(memory)
    task.set_retry(EVICTIONS, backoff_duration="30s", backoff_factor=1.0, backoff_max_duration=FOREVER)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.use_secret_as_volume(task, secret, SECRET_FOLDER, optional=True)  # whole: each key named is 900 bytes
    for variable, value in pods.as_environment().items():
        task.set_env_variable(variable, value)
    if pods.pull_secrets:
        kubernetes.set_image_pull_secrets(task, [*pods.pull_secrets])
    kubernetes.add_pod_label(task, *STEP)  # for manifests/pipeline/network-steps.yaml
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit="20Gi")


def _container(*command: str, args: list[Any], image: str = "image") -> dsl.ContainerSpec:
    """Return the container of a command of ours, in the image that is the value of one of the component's inputs.

    kfp's own `set_container_image` adds two inputs to every task instead.
    """
    return dsl.ContainerSpec(f"{{{{$.inputs.parameters['{image}']}}}}", command=["recaption", *command], args=args)


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

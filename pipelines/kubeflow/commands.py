"""The command line of the pipeline, and of the containers whose arguments KFP writes. kfp is imported on demand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.base.errors import PermanentError

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Endpoint, Pipelines
    from pipelines.kubernetes.pod_settings import PodSettings

pipeline_app = typer.Typer(no_args_is_help=True, help="Compile, submit and schedule the recipe as a Kubeflow pipeline.")
kfp_app = typer.Typer(no_args_is_help=True, help="Entry points of the pipeline's own containers.")

Images = Annotated[
    str, typer.Option(help="Prefix of the images' names, registry included: -operator, -cpu and -gpu follow it.")
]
Tag = Annotated[str | None, typer.Option(help="The images' tag.", show_default="this version")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Host = Annotated[
    str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="KFP's API server, http(s)://….", show_default=False)
]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token for KFP.")]
Ca = Annotated[Path | None, typer.Option(help="File of the certificates to trust.")]
Namespace = Annotated[str | None, typer.Option(help="Namespace, where KFP has several users.")]
Experiment = Annotated[str, typer.Option(help="KFP's experiment: the folder of its runs.")]
Account = Annotated[str | None, typer.Option(help="Kubernetes service account of the run's pods.")]
Ui = Annotated[
    str, typer.Option(envvar="RECAPTION_KFP_UI", help="Address of KFP's UI, for a link to it.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the pipeline, such as job_secret."),
]
PodEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME=VALUE",
        help="A variable of all pods: HF_ENDPOINT, HF_HUB_OFFLINE, HTTP_PROXY, HTTPS_PROXY or NO_PROXY.",
    ),
]
PullSecret = Annotated[
    list[str] | None, typer.Option(help="A Secret of the images' registry, in the namespace of the run's pods.")
]
CacheVolume = Annotated[
    str, typer.Option(help="A PersistentVolumeClaim, or a folder of the nodes, that keeps fetched models.")
]
ExecutorInput = Annotated[str, typer.Argument(metavar="EXECUTOR_INPUT", help="KFP's JSON.")]


@pipeline_app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="The package to write, a .yaml.")],
    manifests: Annotated[
        Path | None, typer.Option(help="Write it as Kubernetes objects (Pipeline, PipelineVersion) too.")
    ] = None,
    images: Images = "recaption",
    tag: Tag = None,
    namespace: Annotated[str | None, typer.Option(help="Namespace of those objects.")] = None,
    env: PodEnv = None,
    pull_secret: PullSecret = None,
    cache_volume: CacheVolume = "",
) -> None:
    """Write the package that KFP's UI takes."""
    pods = _pods(env, pull_secret, cache_volume)
    from pipelines.kubeflow.package import compile_manifests, compile_package

    _write(output, compile_package(images, tag, pods))
    if manifests:
        _write(manifests, compile_manifests(images, tag, namespace, pods))


@pipeline_app.command()
def submit(
    recipe: RecipePath,
    host: Host,
    token_file: TokenFile = None,
    ca: Ca = None,
    namespace: Namespace = None,
    experiment: Experiment = "recaption",
    service_account: Account = None,
    images: Images = "recaption",
    tag: Tag = None,
    set_: Set = None,
    ui: Ui = "",
    env: PodEnv = None,
    pull_secret: PullSecret = None,
    cache_volume: CacheVolume = "",
) -> None:
    """Start a run on a KFP endpoint."""
    parameters = _parameters(recipe, set_ or [])
    from pipelines.kubeflow.package import compile_package
    from pipelines.kubeflow.parameters import recipe_of, refuse_in_cluster

    asked = recipe_of(parameters)
    refuse_in_cluster(asked)
    package = compile_package(images, tag, _pods(env, pull_secret, cache_volume))
    pipelines = _pipelines(host, token_file, ca, namespace)
    run = pipelines.submit(package, asked.name, parameters, experiment, service_account)
    typer.echo(f"{ui.rstrip('/')}/#/runs/details/{run}" if ui else f"KFP run {run}")


@pipeline_app.command()
def schedule(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name; it does each dump at most once.")],
    recipe: RecipePath,
    cron: Annotated[str, typer.Option(help="When to look for a new dump: six fields, seconds first.")],
    host: Host,
    token_file: TokenFile = None,
    ca: Ca = None,
    namespace: Namespace = None,
    experiment: Experiment = "recaption",
    service_account: Account = None,
    images: Images = "recaption",
    tag: Tag = None,
    set_: Set = None,
    ui: Ui = "",
    env: PodEnv = None,
    pull_secret: PullSecret = None,
    cache_volume: CacheVolume = "",
) -> None:
    """Run a recipe on every new Common Crawl dump; {dump} in it is e.g. CC-MAIN-2026-43 (lower case in names)."""
    parameters = {**_parameters(recipe, set_ or []), "schedule": name}
    from pipelines.kubeflow.package import compile_package
    from pipelines.kubeflow.parameters import SOME_DUMP, recipe_of, refuse_in_cluster
    from pipelines.kubeflow.steps import check_schedule

    check_schedule(parameters)
    refuse_in_cluster(recipe_of(parameters, SOME_DUMP))
    package = compile_package(images, tag, _pods(env, pull_secret, cache_volume))
    pipelines = _pipelines(host, token_file, ca, namespace)
    made, new = pipelines.schedule(package, name, cron, parameters, experiment, service_account)
    shown = f"{ui.rstrip('/')}/#/recurringrun/details/{made}" if ui else f"KFP recurring run {made}"
    typer.echo(f"{shown}{'' if new else '  (was there already)'}")


@kfp_app.command()
def plan(executor_input: ExecutorInput) -> None:
    """Plan and claim the run of the pipeline's recipe."""
    from pipelines.kubeflow import steps

    steps.plan(steps.ExecutorInput.parse(executor_input))


@kfp_app.command()
def report(
    executor_input: ExecutorInput,
    table: Annotated[Path, typer.Option(help="Where KFP wants the result table.")],
    page: Annotated[Path, typer.Option(help="Where KFP wants the report.")],
) -> None:
    """Write the report, and the artifacts that KFP's UI shows."""
    from pipelines.kubeflow import steps

    steps.report(steps.ExecutorInput.parse(executor_input), table, page)


@kfp_app.command()
def cleanup(executor_input: ExecutorInput) -> None:
    """Delete the Jobs that the run left in the cluster: the pipeline's exit step."""
    from pipelines.kubeflow import steps

    steps.cleanup(steps.ExecutorInput.parse(executor_input))


def _parameters(recipe: Path, settings: list[str]) -> dict[str, str]:
    """Return the pipeline's parameters that differ from the defaults: this recipe, and what `--set` gives.

    Raises:
        PermanentError: the recipe can't be read or is empty, or a setting is no NAME=VALUE of the pipeline's.
    """
    from pipelines.kubeflow.parameters import RECIPE, parameters

    values = {RECIPE.name: _text(recipe)}
    if not values[RECIPE.name].strip():
        raise PermanentError(f"recipe {recipe}: the file is empty")
    names = [p.name for p in parameters() if p.name != RECIPE.name]
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name not in names or not equals:
            raise PermanentError(f"--set {setting}: expected NAME=VALUE with NAME out of {', '.join(names)}")
        values[name] = value
    return values


def _pods(env: list[str] | None, pull_secrets: list[str] | None, cache_volume: str) -> PodSettings:
    """Return what the options give all pods. Raises PermanentError for a variable or a name that can't be."""
    from pipelines.kubernetes.pod_settings import PodSettings

    pairs = [tuple(setting.split("=", 1)) for setting in env or []]
    if wrong := next((pair[0] for pair in pairs if len(pair) != 2), None):
        raise PermanentError(f"--env {wrong}: expected NAME=VALUE")
    return PodSettings(tuple((name, value) for name, value in pairs), tuple(pull_secrets or ()), cache_volume)


def _text(recipe: Path) -> str:
    try:
        return recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"recipe {recipe}: {getattr(error, 'strerror', None) or error}") from error


def endpoint(host: str, token_file: Path | None, ca: Path | None, namespace: str | None = None) -> Endpoint:
    """Return the endpoint that the options name. Raises PermanentError."""
    from pipelines.kubeflow.client import Endpoint

    if not host.startswith(("http://", "https://")):
        raise PermanentError(f"KFP endpoint {host}: expected http://… or https://…")
    token = _text(token_file).strip() if token_file else None
    return Endpoint(host.rstrip("/"), token, str(ca) if ca else None, namespace)


def _pipelines(host: str, token_file: Path | None, ca: Path | None, namespace: str | None) -> Pipelines:
    from pipelines.kubeflow.client import Pipelines

    return Pipelines(endpoint(host, token_file, ca, namespace))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PermanentError(f"cannot write {path}: {error.strerror}") from error
    typer.echo(f"{path}")

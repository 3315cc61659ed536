"""The command line: what a person types, and what a container runs."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from components.base.addresses import without_login
from components.base.errors import PermanentError, RecaptionError, leaving_on_sigterm
from components.base.printable import printable_lines
from components.base.version import version
from components.recipe import recipe as schema
from components.recipe.yaml_io import check, read_file, read_yaml
from pipelines.execution.progress import console
from pipelines.kubeflow.commands import Ca, TokenFile, endpoint, kfp_app, pipeline_app

if TYPE_CHECKING:
    from components.pool.run import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn a pool of web image-text pairs into a better training set with the same images.",
)
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(kfp_app, name="kfp", hidden=True)
out = Console(width=None if sys.stdout.isatty() else 140)
log = logging.getLogger(__name__)
# What brings pyarrow is imported where it is used: the operator, which has little memory, begins here too.

TERMINATION_LOG = Path("/dev/termination-log")
LONGEST_MESSAGE = 1024  # characters: Kubernetes keeps 4,096 bytes of a container's

GO_ON = "finished work is kept, run the same command to go on"

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
RunUri = Annotated[str, typer.Argument(metavar="RUN", help="<storage>/runs/<run>, as `run` prints it.")]
Claimant = Annotated[
    str | None,
    typer.Option(help="In a step of a KFP run: the id of the KFP run that must hold the run's claim.", hidden=True),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        envvar="POD_NAMESPACE", help="Namespace of the runs' pods; by default this pod's or the kubeconfig's."
    ),
]


@app.command()
def validate(recipe: RecipePath) -> None:
    """Check a recipe, or a RecaptionSchedule, and print a line for every mistake."""
    value = read_yaml(read_file(recipe, "recipe"), str(recipe))
    if value.get("kind") == "RecaptionSchedule":
        from pipelines.operator.schedule.template import check_schedule

        check_schedule(value, str(recipe))
    else:
        check(schema.Recipe, value, str(recipe))
    out.print(f"{recipe}: valid")


@app.command()
def plan(recipe: RecipePath) -> None:
    """Show what a run would do and cost, without computing or writing anything."""
    from pipelines.planning.estimate import show_plan
    from pipelines.planning.plan import plan_run

    show_plan(plan_run(schema.load_recipe(recipe)), out)


@app.command()
def run(recipe: RecipePath) -> None:
    """Run a recipe on this machine; work that is done already is skipped."""
    _run(schema.load_recipe(recipe))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo's pool and results go.")] = Path("demo"),
    samples: Annotated[
        int | None, typer.Option(min=1, help="Size of the pool; the default fits 6 minutes on 2 cores.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rendered world and of the training.")] = 0,
) -> None:
    """Run the whole recipe on a small rendered world."""
    from components.miniature.demo import prepare

    _run(schema.load_recipe(prepare(folder, samples=samples, seed=seed)))


@app.command()
def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE",
            help="<storage>/runs/<run>, as `run` prints it, or the recipe, a YAML file that was run.",
            show_default=False,
        ),
    ],
) -> None:
    """Write a run's report again and print its path."""
    from components.engine.registry import step
    from components.pool.run import load_run
    from pipelines.planning.plan import run_of_recipe

    is_recipe = run.endswith((".yaml", ".yml")) or Path(run).is_file()
    loaded = load_run(run_of_recipe(schema.load_recipe(Path(run))) if is_recipe else run)
    step("report").run(loaded)
    out.print(f"{loaded.storage.uri}/{loaded.folder}/report.html", soft_wrap=True)


@app.command()
def stages() -> None:
    """List the stages with what they read, write and need."""
    from pipelines.planning.estimate import stage_table

    out.print(stage_table())


@app.command()
def stage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help="A column of the run (e.g. caption:blip2) or a step; several: mix,analyze."
        ),
    ],
    run: RunUri,
    task: Annotated[int | None, typer.Option(help="Only this part of the work; tasks count from 0.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of an Indexed Job, such as 0-4,7; its pod does the one of its index.")
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(help="For train and evaluate: only this mixture."),
    ] = None,
    launched: Annotated[
        bool, typer.Option("--launched", help="Stop when the launcher that follows this stage is gone.")
    ] = False,
    claimant: Claimant = None,
) -> None:
    """Run one stage of a planned run, as a container does."""
    from pipelines.kubeflow.step_retry import execute

    for one in name.split(","):
        execute(
            one, run, claimant, partial(_stage, name=one, task=task, tasks=tasks, mixture=mixture, launched=launched)
        )


def _stage(loaded: Run, name: str, task: int | None, tasks: str | None, mixture: str | None, launched: bool) -> None:
    from components.engine.registry import stages as declared
    from components.engine.stage import Step
    from pipelines.execution.local import run_column, run_step
    from pipelines.execution.run_status import timed
    from pipelines.kubernetes.worker import followed, own_task
    from pipelines.planning.graph_nodes import FANNED_OUT, ingest_of

    before = ingest_of(loaded)
    steps = [s for s, kind in declared().items() if issubclass(kind, Step) and s not in ("extract", "download")]
    if name not in [*before, *loaded.nodes, *steps]:
        raise PermanentError(f"stage {name}: run {loaded.name} has {', '.join([*before, *loaded.nodes, *steps])}")
    if tasks is not None:
        task = own_task(tasks)
    if mixture is not None:
        if name not in ("train", "evaluate"):
            raise PermanentError(f"stage {name}: works on all mixtures; leave --mixture out")
        loaded = loaded.training_only(mixture)
    with followed(loaded, name) if launched else nullcontext():
        if name in loaded.nodes:
            run_column(loaded, loaded.nodes[name], task)
        elif task is None and name not in (*before, *FANNED_OUT):  # for those the launcher keeps status.json
            timed(loaded, name, lambda: run_step(loaded, name))
        else:
            run_step(loaded, name, task)


@app.command()
def launch(
    name: Annotated[
        str,
        typer.Argument(metavar="STAGE", help="A group (e.g. caption), a column or a step with tasks; or several: a,b."),
    ],
    run: RunUri,
    image: Annotated[str | None, typer.Option(envvar="RECAPTION_IMAGE", help="The workers' image.")] = None,
    cpu_image: Annotated[str | None, typer.Option(help="Their image for groups without a model.")] = None,
    gpu_image: Annotated[str | None, typer.Option(help="Their image for groups with a model.")] = None,
    namespace: Namespace = None,
    service_account: Annotated[
        str | None,
        typer.Option(
            envvar="RECAPTION_SERVICE_ACCOUNT", help="The workers' service account, which may use the storage."
        ),
    ] = None,
    secret: Annotated[
        str | None, typer.Option(envvar="RECAPTION_SECRET", help="A Secret of environment variables, e.g. HF_TOKEN.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Use only this one of the recipe's compute.pools.")] = None,
    workflow: Annotated[
        str | None, typer.Option(help="NAME/UID of the Workflow that owns the Jobs; a KFP step finds its own.")
    ] = None,
    claimant: Claimant = None,
) -> None:
    """Run a stage in a cluster: its tasks as Indexed Jobs, followed to their end. Started again, it finds its Jobs."""
    from pipelines.kubeflow.step_retry import execute

    if _on_this_machine():
        from pipelines.execution.local import run_group

        for one in name.split(","):
            execute(one, run, claimant, partial(run_group, name=one))
        return
    from pipelines.kubernetes.cluster import connect, own_workflow
    from pipelines.kubernetes.jobs import Owner, Target
    from pipelines.kubernetes.launcher import launch
    from pipelines.kubernetes.pod_settings import PodSettings

    def work(loaded: Run, name: str) -> None:
        cluster = connect(namespace)
        owner = Owner(*workflow.split("/", 1)) if workflow and "/" in workflow else own_workflow(cluster)
        pods = PodSettings.from_environment()
        used = _image(name, image, cpu_image, gpu_image)
        target = Target(cluster.namespace, used, service_account, secret, owner, pods)
        for key, counts in launch(loaded, name, cluster, target, pool).items():
            out.print(key, {k: v for k, v in counts.items() if k != "state"}, soft_wrap=True)

    for one in name.split(","):
        execute(one, run, claimant, partial(work, name=one))


def _image(group: str, image: str | None, cpu_image: str | None, gpu_image: str | None) -> str:
    """Return the image of a group's workers. Raises PermanentError where none was given for it."""
    from pipelines.planning.graph_nodes import FANNED_OUT, needs_gpu

    kind = None if group not in FANNED_OUT else "gpu" if needs_gpu(group) else "cpu"
    found = {"gpu": gpu_image, "cpu": cpu_image, None: None}[kind] or image
    if not found:
        raise PermanentError(
            f"launch {group}: no image for its workers; give --image" + (f" or --{kind}-image" if kind else "")
        )
    return found


@app.command()
def cleanup(run: RunUri, namespace: Namespace = None) -> None:
    """End what a run left in a cluster: its Jobs and TrainJobs. What they finished stays."""
    if _on_this_machine():
        return
    from pipelines.kubernetes.cleanup import cleanup
    from pipelines.kubernetes.cluster import connect

    for name in cleanup(connect(namespace), run):
        out.print(f"deleted {name}", soft_wrap=True)


@app.command()
def operator() -> None:
    """Run the operator, which does what the cluster's Recaptions ask for; its environment sets it up."""
    from pipelines.operator.controller import operate
    from pipelines.operator.runtime.settings import Settings

    operate(Settings.from_environment())


@app.command()
def doctor(
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the runs' pods; by default the operator's setting.")
    ] = None,
    operator_namespace: Annotated[str, typer.Option(help="The operator's namespace.")] = "recaption",
    kfp: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="KFP's API server to check, http(s)://…")
    ] = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    storage: Annotated[
        str | None, typer.Option(help="A storage to check: an object is created in it and deleted again.")
    ] = None,
) -> None:
    """Check a cluster, and say what to fix (exit code 42: something is broken; 75: something is out of reach)."""
    from pipelines.doctor.diagnosis import diagnose, exit_code, table

    diagnosis = diagnose(namespace, operator_namespace, endpoint(kfp, token_file, ca) if kfp else None, storage)
    out.print(table(diagnosis))
    raise typer.Exit(exit_code(diagnosis))


@app.callback(invoke_without_command=True)
def common(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        out.print(f"recaption {version()}")
        raise typer.Exit


def _on_this_machine() -> bool:
    """Return whether a launcher shall do the work itself, on this one node: no cluster is asked."""
    return os.environ.get("RECAPTION_LAUNCHER") == "local"


def _run(recipe: schema.Recipe) -> None:
    from pipelines.execution.local import run_all
    from pipelines.planning.estimate import result_view
    from pipelines.planning.plan import plan_run

    planned = plan_run(recipe)
    for text in planned.remarks:
        log.warning("%s", text)
    planned.save()
    shards = f"{len(planned.pool.shards)} shards" if planned.is_downloaded else "its pool is downloaded first"
    log.info("run %s: %s, storage %s", planned.name, shards, planned.storage.uri)
    try:
        run_all(planned)
    except KeyboardInterrupt:
        log.info("stopped by Ctrl-C; %s", GO_ON)
        raise
    out.print(result_view(planned))
    for name, why in planned.empty.items():
        out.print(f"mixture {name}: {why}", soft_wrap=True, markup=False)
    out.print(f"run     {planned.storage.uri}/{planned.folder}", soft_wrap=True)
    out.print(f"report  {planned.storage.uri}/{planned.folder}/report.html", soft_wrap=True)


def _log_to_stderr() -> None:
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_path=False, log_time_format="%H:%M:%S", highlighter=NullHighlighter()
        )
        handler.setFormatter(_Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_is_ours)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Formatter(logging.Formatter):
    """Leaves out what a terminal would obey, and passwords: messages quote names, texts and addresses of others."""

    def format(self, record: logging.LogRecord) -> str:
        return without_login(printable_lines(super().format(record)))


def _is_ours(record: logging.LogRecord) -> bool:
    """Let through our progress and everybody's warnings: open_clip logs ten lines about each model it loads."""
    return record.levelno >= logging.WARNING or record.name.startswith(("components", "pipelines", "__main__"))


def main() -> None:
    """Run the command line: errors become one line and an exit code (42 bad input, 75 bad luck, 143 stopped)."""
    # Torch's CPU threads spin while they wait, in the way of the processes that decode: here 6 times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _log_to_stderr()
    try:
        with leaving_on_sigterm(GO_ON):
            app()
    except RecaptionError as error:
        _fail(f"error: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "components", "pipelines"):
            raise
        what = f"error: {error}: this stage needs what `pip install 'recaption[stages]'` brings"
        _fail(what, PermanentError.exit_code)
    except Exception as error:
        _tell_kubernetes(f"error: {type(error).__name__}: {error}")
        raise


def _fail(line: str, code: int) -> NoReturn:
    line = printable_lines(line)
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    _tell_kubernetes(line)
    sys.exit(code)


def _tell_kubernetes(line: str) -> None:
    """Leave the line as the container's termination message: `kubectl describe pod`, Argo and KFP's UI show it."""
    if TERMINATION_LOG.exists():  # only a kubelet makes it
        try:
            TERMINATION_LOG.write_text(line[:LONGEST_MESSAGE], encoding="utf-8")
        except OSError as error:
            log.warning("%s: %s", TERMINATION_LOG, error.strerror)


if __name__ == "__main__":
    main()

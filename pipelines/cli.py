"""The command line: what a person types, and what a container runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from components.pool import recipe as schema
from components.pool import version
from components.pool.errors import PermanentError, RecaptionError, Terminated
from components.pool.run import load_run
from components.pool.stage import Step
from components.pool.worker import stop_on_sigterm
from pipelines.progress import console

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn a pool of web image-text pairs into a better training set with the same images.",
)
out = Console(width=None if sys.stdout.isatty() else 140)
log = logging.getLogger(__name__)

GO_ON = "finished work is kept, run the same command to go on"

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
RunUri = Annotated[str, typer.Argument(metavar="RUN", help="<storage>/runs/<run>, as `run` prints it.")]


@app.command()
def validate(recipe: RecipePath) -> None:
    """Check a recipe; every mistake is one line."""
    schema.load_recipe(recipe)
    out.print(f"{recipe}: valid")


@app.command()
def plan(recipe: RecipePath) -> None:
    """Show what a run would do and cost; computes and writes nothing."""
    from pipelines.estimate import show_plan
    from pipelines.plan import plan_run

    show_plan(plan_run(schema.load_recipe(recipe)), out)


@app.command()
def run(recipe: RecipePath) -> None:
    """Run a recipe on this machine; what is done already is not done again."""
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
def report(run: RunUri) -> None:
    """Write a run's report anew and say where it is."""
    from pipelines.stages import step

    loaded = load_run(run)
    step("report").run(loaded)
    out.print(f"{loaded.storage.uri}/{loaded.folder}/report.html", soft_wrap=True)


@app.command()
def stages() -> None:
    """List the stages with what they read, write and need."""
    from pipelines.estimate import stage_table

    out.print(stage_table())


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="STAGE", help="A column of the run (e.g. caption:blip2) or a step.")],
    run: RunUri,
    task: Annotated[int | None, typer.Option(help="Only this part of the work; tasks count from 0.")] = None,
) -> None:
    """Run one stage of a planned run: what a container does."""
    from pipelines.local import run_column, run_step
    from pipelines.stages import stages as declared

    loaded = load_run(run)
    steps = [s for s, kind in declared().items() if issubclass(kind, Step)]
    if name in loaded.nodes:
        run_column(loaded, loaded.nodes[name], task)
    elif name not in steps:
        raise PermanentError(f"stage {name}: run {loaded.name} has {', '.join([*loaded.nodes, *steps])}")
    else:
        run_step(loaded, name, task)


@app.callback(invoke_without_command=True)
def common(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        out.print(f"recaption {version()}")
        raise typer.Exit


def _run(recipe: schema.Recipe) -> None:
    from pipelines.estimate import result_view
    from pipelines.local import run_all
    from pipelines.plan import plan_run

    planned = plan_run(recipe)
    planned.save()
    log.info("run %s: %d shards, storage %s", planned.name, len(planned.pool.shards), planned.storage.uri)
    try:
        run_all(planned)
    except KeyboardInterrupt:
        log.info("stopped by Ctrl-C; %s", GO_ON)
        raise
    out.print(result_view(planned))
    out.print(f"run     {planned.storage.uri}/{planned.folder}", soft_wrap=True)
    out.print(f"report  {planned.storage.uri}/{planned.folder}/report.html", soft_wrap=True)


def _log_to_stderr() -> None:
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_path=False, log_time_format="%H:%M:%S", highlighter=NullHighlighter()
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_is_ours)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _is_ours(record: logging.LogRecord) -> bool:
    """Our progress and everybody's warnings: open_clip tells ten lines about each model it loads."""
    return record.levelno >= logging.WARNING or record.name.startswith(("components", "pipelines", "__main__"))


def main() -> None:
    """Entry point: errors become one line and an exit code (42 bad input, 75 bad luck, 143 stopped)."""
    _log_to_stderr()
    stop_on_sigterm()
    try:
        app()
    except RecaptionError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Terminated as stopped:
        log.info("stopped by SIGTERM; %s", GO_ON)
        sys.exit(stopped.exit_code)


if __name__ == "__main__":
    main()

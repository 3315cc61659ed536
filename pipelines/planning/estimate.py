"""What a run will do and cost, as tables for a person: nothing here computes a column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.table import Table

from components.engine.registry import column_stage, stages
from components.engine.stage import DECODER_GIB, ColumnStage
from components.pool.columns import ALL, Columns
from components.pool.run import Node, Run
from components.pool.shards import Shard
from components.pool.specs import ColumnSpec
from components.recipe.training import Train
from components.selection.demand import expected_share, foresee_demand
from components.selection.needs import left_out
from components.stages.report.table import result_table
from components.stages.train.scales import scale_of
from pipelines.planning.download_forecast import upcoming
from pipelines.planning.graph_nodes import place_of
from pipelines.planning.pool_size import Size, pool_size
from pipelines.planning.predictions import costs_in_words
from pipelines.planning.rates import A100, stated
from pipelines.planning.training_sets import in_bytes, lines_of
from pipelines.planning.without_gpus import without_gpus

COUNTED = 2_000  # shards of a pool whose demand a plan counts exactly: some minutes for 20 million samples


@dataclass(frozen=True)
class Line:
    """One row of the plan."""

    key: str
    asked: float
    """Samples whose value this recipe needs."""
    todo: float
    """Of these, samples without one."""
    exact: bool
    done: int
    """Shards whose part exists."""
    bytes: float
    """Still to be written."""
    hours: float | None
    """GPU-hours of an A100 still to come; None where no rate is known."""


def show_plan(run: Run, console: Console) -> None:
    """Print shards, samples, tasks, what exists already, and estimates from stated rates."""
    tars, lines = _show_pool(run, console) if run.is_downloaded else _show_upcoming(run, console)
    for text in left_out(run.spec):
        console.print(text, highlight=False)
    for text in lines_of(run.mixtures, tars):
        console.print(text, highlight=False)
    if run.spec.train:
        for mixture in run.trained:
            console.print(f"train {mixture.name}: {_training(run.spec.train)}", highlight=False)
    console.print(f"Rates: {stated(A100)} samples/s on an A100 (the paper, Appendix B).", highlight=False)
    for text in run.remarks:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    todo = {line.key: line.todo for line in lines}
    for text in (*without_gpus(run, todo), *costs_in_words(run, todo)):
        console.print(text, highlight=False)


def _show_pool(run: Run, console: Console) -> tuple[float, list[Line]]:
    """Show the pool that is there; return the bytes of its tars, and its columns."""
    pool, lines = pool_size(run), plan_lines(run)
    tars = sum(shard.size for shard in run.pool.shards)
    console.print(
        f"run {run.name}: pool {run.pool.name}, {len(run.pool.shards):,} shards ({in_bytes(tars)}), "
        f"{_about(pool.rows, pool.exact)} samples, {run.tasks:,} tasks"
    )
    if changed := len(run.open_columns().changed(run.index, run.pool.shards)):
        console.print(
            f"{changed:,} of its shards are not as they were indexed; what of their columns is still good is known "
            "when they are indexed anew, and counted as missing here",
            highlight=False,
        )
    table = _table("column", "samples", "to do", "shards done", "writes", "A100-hours")
    for line in lines:
        counts = _about(line.asked, line.exact), _about(line.todo, line.exact)
        done = f"{line.done:,} of {len(run.pool.shards):,}"
        table.add_row(line.key, *counts, done, in_bytes(line.bytes), _in_hours(line.hours))
    table.add_row("all", "", "", "", in_bytes(sum(line.bytes for line in lines)), _all_hours(lines))
    console.print(table)
    return tars, lines


def _show_upcoming(run: Run, console: Console) -> tuple[float | None, list[Line]]:
    """Show the download that comes first; return the bytes of its tars, and the columns if every image arrived."""
    pool = upcoming(run)
    console.print(f"run {run.name}: pool {run.pool.name}, to be downloaded from {pool.source}", highlight=False)
    candidates = "not known yet" if pool.candidates is None else _about(pool.candidates, pool.exact)
    console.print(f"candidates: {candidates} ({pool.origin})", highlight=False)
    if pool.tars is not None:
        console.print(f"its tars: about {in_bytes(pool.tars)} ({pool.tars_origin})", highlight=False)
    steps = Table("step", "done", box=None, pad_edge=False)
    for key, done in pool.steps:
        steps.add_row(key, done)
    console.print(steps)
    if pool.candidates is None:
        console.print("what its columns cost can be said when the candidates are known")
        return None, []
    lines = list(_foreseen(run, pool.candidates))
    table = _table("column", "samples", "writes", "A100-hours")
    for line in lines:
        table.add_row(line.key, _about(line.asked, False), in_bytes(line.bytes), _in_hours(line.hours))
    table.add_row("all", "", in_bytes(sum(line.bytes for line in lines)), _all_hours(lines))
    console.print(
        "its columns, if every image arrives and none is done; what is left is known when all are downloaded:"
    )
    console.print(table)
    return pool.tars, lines


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for title in others:
        table.add_column(title, justify="right")
    return table


def _foreseen(run: Run, samples: float) -> Iterator[Line]:
    """Yield the columns of a pool of so many samples of which nothing is there."""
    for node in run.nodes.values():
        asked = samples * (1.0 if node.part == ALL else expected_share(run.spec, node.name))
        yield Line(node.key, asked, asked, False, 0, asked * _bytes_of(node), A100.hours(node, asked))


def plan_lines(run: Run) -> list[Line]:
    """Return what each column of the run asks for and still lacks."""
    columns, size = run.open_columns(), pool_size(run)
    columns.read_records(run.index, run.pool.shards)  # which say what the parts of a shard are called
    lines: dict[str, Line] = {}
    for node in run.nodes.values():
        exact = size.exact
        if node.part == ALL:
            asked = size.rows if node.spec == run.index else size.usable
            todo = _missing(run, columns, node, asked, size)
        elif node.demand:
            exact = size.exact and _demand_is_known(run, columns)
            asked, todo = _demanded(run, columns, node) if exact else _expected(run, columns, node, size)
        else:  # computed from a column on demand: for whatever has a value by then
            caption = lines[run.find("text", node.name).key]
            asked, exact = caption.asked, caption.exact
            captioned, scored = (_covered(run, columns, spec) for spec in (node.spec.inputs["text"], node.spec))
            todo = max(0.0, captioned + caption.todo - scored)
        done = len(run.pool.shards) - len(run.lacking(columns, node))
        written = todo * _bytes_of(node)
        lines[node.key] = Line(node.key, asked, todo, exact, done, written, A100.hours(node, todo))
    return list(lines.values())


def _missing(run: Run, columns: Columns, node: Node, asked: float, size: Size) -> float:
    """Return how many samples of a whole column no part covers, in the shards that lack this run's part."""
    todo = run.lacking(columns, node)
    covered = sum(columns.rows(node.spec, shard) for shard in todo)
    counted = size.exact and all(columns.parts(run.index, shard) for shard in todo)
    if not counted or node.spec == run.index or len(todo) == len(run.pool.shards):
        share = sum(shard.size for shard in todo) / max(1, sum(shard.size for shard in run.pool.shards))
        return max(0.0, asked * share - covered)
    return float(sum(_usable(run, columns, shard) for shard in todo) - covered)


def _demand_is_known(run: Run, columns: Columns) -> bool:
    """Return whether everything that decides a demand is there and the pool is small enough to look at all of it."""
    known = [node for node in run.nodes.values() if node.name not in run.spec.on_demand]
    return len(run.pool.shards) <= COUNTED and not any(run.lacking(columns, node) for node in known)


def _demanded(run: Run, columns: Columns, node: Node) -> tuple[float, float]:
    """Count (samples that a captioner is asked for, those without a caption)."""
    demand = foresee_demand(run, node.name)

    def count(shard: Shard) -> tuple[int, int]:
        index = columns.read(run.index, shard)
        asked = index.filter(pc.and_(pc.is_null(index.column("error")), pa.array(demand(shard, index))))
        if not columns.parts(node.spec, shard):
            return asked.num_rows, asked.num_rows
        own = columns.read(node.spec, shard, []).column("uid").combine_chunks()
        there = pc.sum(pc.is_in(asked.column("uid"), value_set=own)).as_py() or 0
        return asked.num_rows, asked.num_rows - there

    counts = [count(shard) for shard in run.pool.shards]
    return float(sum(a for a, _ in counts)), float(sum(t for _, t in counts))


def _expected(run: Run, columns: Columns, node: Node, size: Size) -> tuple[float, float]:
    asked = size.usable * expected_share(run.spec, node.name)
    return asked, _missing(run, columns, node, asked, Size(size.rows, size.usable, False))


def _covered(run: Run, columns: Columns, spec: ColumnSpec) -> int:
    return sum(columns.rows(spec, shard) for shard in run.pool.shards)


def _usable(run: Run, columns: Columns, shard: Shard) -> int:
    index = columns.read(run.index, shard, ["error"])
    return int(index.column("error").null_count)


def _bytes_of(node: Node) -> int:
    """Return the bytes of a sample's value."""
    return column_stage(node.spec.stage).bytes_per_sample(node.spec)


def _about(count: float, exact: bool) -> str:
    return f"{count:,.0f}" if exact or not count else f"about {count:,.0f}"


def _all_hours(lines: list[Line]) -> str:
    known = sum(line.hours for line in lines if line.hours is not None)
    if all(line.hours is not None for line in lines):
        return _in_hours(known)
    return f"{known:,.2f} and more" if known else _in_hours(None)


def _in_hours(hours: float | None) -> str:
    return "no stated rate" if hours is None else f"{hours:,.2f}" if hours else "–"


def _training(train: Train) -> str:
    samples, hours = scale_of(train)[0].samples, A100.training_hours(train)
    if hours is None:
        return f"{samples:,} samples, no stated rate"
    return f"{samples:,} samples, {hours:,.0f} A100-hours (the paper, Appendix B)"


def stage_table() -> Table:
    """Return the declared stages as a table; README's table says the same."""
    table = Table("stage", "what it does", "reads", "writes", "needs", box=None, pad_edge=False)
    for row in stage_rows():
        table.add_row(*row)
    return table


def stage_rows() -> list[tuple[str, str, str, str, str]]:
    """Name, summary, reads, writes, needs of every stage, in pipeline order as far as it is fixed."""
    found = sorted(stages().values(), key=place_of)
    return [(s.name, s.summary, ", ".join(s.reads), _writes(s), _needs(s)) for s in found]


def _writes(stage: Any) -> str:
    if issubclass(stage, ColumnStage):
        return ", ".join(f"{f.name} {f.dtype}" for f in stage.fields) if len(stage.fields) < 4 else stage.writes
    return str(stage.writes)


def _needs(stage: Any) -> str:
    per_core = f" + {DECODER_GIB:g} per core" if stage.needs.decoders is None else ""
    return f"{stage.needs.gib(0):g} GiB{per_core}" + (", GPU" if stage.needs.gpu else "")


def result_view(run: Run) -> Group | Table | str:
    """Return the table at the end of a run."""
    rows = result_table(run)
    if not rows:
        return "no mixtures"
    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(title, no_wrap=True, justify="left" if title == "mixture" else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

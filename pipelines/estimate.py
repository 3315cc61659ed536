"""What a run will do and cost, as tables for a person: nothing here computes a column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from components.index.stage import IndexStage
from components.pool import recipe as schema
from components.pool.columns import ALL, Columns
from components.pool.demand import expected_share
from components.pool.run import Node, Run
from components.pool.stage import Batch, ColumnStage
from components.report.table import result_table
from pipelines.stages import stages

# Samples per second of one A100: the paper, Appendix B. Training rates follow from its A100-hours.
RATES = {
    "ViT-L-14": 490.0,
    "Salesforce/blip2-opt-2.7b": 75.0,
}
TRAINING = {"small": (12.8e6, 4.0), "medium": (128e6, 40.0), "large": (1.28e9, 960.0)}  # samples, A100-hours
TEXT_TOWER = 13.0  # an image costs this many texts in CLIP ViT-L/14 (FLOPs of its two towers)
WIDTHS = {"ViT-B-32": 512, "ViT-B-16": 512, "ViT-L-14": 768}  # float16 numbers of an embedding
# Per sample; an embedding has its numbers beside them.
BYTES = {"index": 110, "embed": 32, "score": 26, "caption": 70, "import": 30, "filter": 22}
PROBE = 2  # shards whose headers are read when the pool was never indexed


@dataclass(frozen=True)
class Line:
    """One row of the plan."""

    key: str
    samples: float
    done: int
    """Shards whose part exists."""
    bytes: float
    hours: float | None
    """GPU-hours of an A100; None where no rate is known."""


def show_plan(run: Run, console: Console) -> None:
    """Print shards, samples, tasks, what exists already, and estimates from stated rates."""
    samples, exact = pool_samples(run)
    about = "" if exact else "about "
    size = sum(shard.size for shard in run.pool.shards)
    console.print(
        f"run {run.name}: pool {run.pool.name}, {len(run.pool.shards):,} shards ({_bytes(size)}), "
        f"{about}{samples:,.0f} samples, {run.tasks:,} tasks"
    )
    table = Table("column", "samples", "shards done", "writes", "A100-hours", box=None, pad_edge=False)
    lines = [_line(run, node, samples) for node in run.nodes.values()]
    for line in lines:
        hours = "–" if line.hours == 0 else "no stated rate" if line.hours is None else f"{line.hours:,.2f}"
        table.add_row(
            line.key, f"{line.samples:,.0f}", f"{line.done:,} of {len(run.pool.shards):,}", _bytes(line.bytes), hours
        )
    console.print(table)
    for mixture in run.trained:
        console.print(f"train {mixture.name}: {_training(run.spec)}", highlight=False)
    console.print("Rates: CLIP ViT-L/14 490 and BLIP-2 OPT-2.7B 75 samples/s on an A100 (the paper, Appendix B).")


def pool_samples(run: Run) -> tuple[float, bool]:
    """Samples in the pool, and whether that is exact (indexed) or scaled up from the headers of two shards."""
    columns = Columns(run.storage, run.pool.name)
    if all(columns.parts(run.index, shard) for shard in run.pool.shards):
        return float(sum(columns.rows(run.index, shard) for shard in run.pool.shards)), True
    some = run.pool.shards[:PROBE]
    count = 0
    for shard in some:
        with run.pool.source.open(shard.tar) as tar:
            count += len(IndexStage(run.index).process(Batch(shard, [], tar=tar))["uid"])
    size = sum(shard.size for shard in some)
    return count * sum(shard.size for shard in run.pool.shards) / max(1, size), len(some) == len(run.pool.shards)


def _line(run: Run, node: Node, samples: float) -> Line:
    columns = Columns(run.storage, run.pool.name)
    kind = node.spec.stage
    share = expected_share(run.spec, node.key.partition(":")[2]) if node.part != ALL else 1.0
    count = samples * share
    done = sum(node.part in columns.parts(node.spec, shard) for shard in run.pool.shards)
    width = WIDTHS.get(run.spec.scorer.model, 512) * 2 if kind == "embed" else 0
    return Line(node.key, count, done, count * (BYTES[kind] + width), _hours(run.spec, node, count))


def _hours(spec: schema.Spec, node: Node, samples: float) -> float | None:
    kind, name = node.spec.stage, node.key.partition(":")[2]
    if kind in ("index", "import", "filter"):
        return 0.0
    model = next((c.model for c in spec.captioners if kind == "caption" and c.name == name), spec.scorer.model)
    if model not in RATES:
        return None
    return samples / (RATES[model] * (TEXT_TOWER if kind == "score" else 1.0)) / 3600


def _training(spec: schema.Spec) -> str:
    scale = spec.train.scale if spec.train else ""
    if isinstance(scale, schema.ScaleConfig):
        return f"{scale.samples:,} samples, no stated rate"
    if scale in TRAINING:
        samples, hours = TRAINING[scale]
        return f"{samples:,.0f} samples, {hours:,.0f} A100-hours (the paper, Appendix B)"
    return f"scale {scale}, no stated rate"


def stage_table() -> Table:
    """The declared stages; README's table says the same."""
    table = Table("stage", "what it does", "reads", "writes", "needs", box=None, pad_edge=False)
    for row in stage_rows():
        table.add_row(*row)
    return table


def stage_rows() -> list[tuple[str, str, str, str, str]]:
    """Name, summary, reads, writes, needs of every stage, in pipeline order as far as it is fixed."""
    columns = ["index", "import", "filter", "embed", "score", "caption"]
    order = [*columns, "mix", "analyze", "reshard", "train", "evaluate", "report"]
    found = sorted(stages().values(), key=lambda s: (order.index(s.name) if s.name in order else 99, s.name))
    return [(s.name, s.summary, ", ".join(s.reads), _writes(s), _needs(s)) for s in found]


def _writes(stage: Any) -> str:
    if issubclass(stage, ColumnStage):
        return ", ".join(f"{f.name} {f.dtype}" for f in stage.fields) if len(stage.fields) < 4 else stage.writes
    return str(stage.writes)


def _needs(stage: Any) -> str:
    return f"{stage.needs.memory_gib:g} GiB" + (", GPU" if stage.needs.gpu else "")


def result_view(run: Run) -> Group | Table | str:
    """The table at the end of a run."""
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


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError

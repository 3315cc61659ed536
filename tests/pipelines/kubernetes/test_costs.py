"""What launched stages say of their costs: predicted by what was measured before, spent by the records, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.pool.run import Run, load_run
from components.recipe.costs import spent
from components.stages.report.stage import ReportStep
from pipelines.cli import app
from pipelines.execution import run_status
from pipelines.execution.local import run_column
from pipelines.planning.measured import measured_rates
from pipelines.planning.predictions import foresee
from tests.pipelines.kubernetes.conftest import TASKS, Work, World, plan, uri
from tests.pipelines.kubernetes.controller import controlled

CORES = [{"name": "few", "cpu": "2", "parallelism": 1}, {"name": "many", "parallelism": 3, "share": 3, "price": 0.5}]


def recorded(run: Run) -> list[float]:
    """The seconds that each shard's index took."""
    columns = run.open_columns()
    return [columns.record(run.index, shard, "all").seconds for shard in run.pool.shards]


def work(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run_status.entry(run, "index")["work"]
    return found


def test_work_is_counted_where_it_was_done_and_once(world: World, tmp_path: Path) -> None:
    world.run = plan(tmp_path, pools=CORES)
    with controlled(world.api, Work()):
        world.launch()
    seconds = recorded(world.run)
    found = work(world.run)
    assert found["few"] == {"seconds": pytest.approx(seconds[0], abs=2e-3), "samples": 3, "devices": 2, "unit": "core"}
    assert found["many"]["seconds"] == pytest.approx(sum(seconds[1:]), abs=2e-3)
    assert (found["many"]["samples"], found["many"]["devices"]) == (9, 1)
    bill = spent(world.run.spec.compute.prices, world.run.status())
    assert bill.core_hours == pytest.approx((2 * seconds[0] + sum(seconds[1:])) / 3600, abs=1e-5)
    assert not bill.is_whole  # pool few has no price
    with controlled(world.api, Work()):
        world.launch()
    assert work(world.run) == found


def test_what_another_run_computed_is_not_spent_again(world: World, tmp_path: Path) -> None:
    node = world.run.nodes["index"]
    for task in range(2):
        run_column(world.run, node, task)
    with controlled(world.api, Work()):
        world.launch()
    assert work(world.run)["cpu"]["samples"] == 3 * (TASKS - 2)
    assert work(world.run)["cpu"]["seconds"] == pytest.approx(sum(recorded(world.run)[2:]), abs=2e-3)


def test_a_launcher_that_was_killed_loses_no_count(world: World) -> None:
    run_status.put(world.run, "index", {"state": "running", "reused": {"seconds": 0, "samples": 0}})
    run_column(world.run, world.run.nodes["index"], 0)  # by a pod, while no launcher was there
    with controlled(world.api, Work()):
        world.launch()
    assert work(world.run)["cpu"]["samples"] == 3 * TASKS


def test_the_next_run_is_predicted_by_what_was_measured(world: World, tmp_path: Path) -> None:
    first = foresee(world.run)
    assert first is not None
    assert first.measured == []
    with controlled(world.api, Work()):
        world.launch()
    assert measured_rates(world.run.storage)["index.shards", "cpu"].samples == 3 * TASKS
    for record in (tmp_path / "out" / "pools" / "pool" / "columns").rglob("*.done.json"):
        record.unlink()
    found = foresee(world.run)
    assert found is not None
    assert found.measured == ["index"]
    predicted = (found.work["index"] or {})["cpu"]
    assert predicted.seconds == pytest.approx(work(world.run)["cpu"]["seconds"], abs=1e-2)


def test_a_damaged_file_of_rates_costs_only_the_prediction(world: World) -> None:
    world.run.storage.write("rates/other.json", b'{"index.shards": {"cpu": {"seconds": "many"}}}')
    world.run.storage.write("rates/another.json", b"[]")
    assert measured_rates(world.run.storage) == {}


def test_attempts_that_failed_are_counted(world: World) -> None:
    ends = Work(lambda pod: (75, "error: storage away\n") if pod.index == 1 and pod.attempt < 2 else None)
    with controlled(world.api, ends):
        world.launch()
    assert run_status.entry(world.run, "index")["retries"] == 2


def test_plan_and_report_tell_hours_and_cost_by_the_recipes_prices(world: World, tmp_path: Path) -> None:
    gpu = {"name": "l4", "accelerator": {"count": 2}, "price": 0.8}
    world.run = plan(tmp_path, pools=[*CORES[1:], gpu])
    hour = {"seconds": 3600, "samples": 1, "devices": 2, "unit": "GPU"}
    world.run.storage.write(
        "rates/earlier.json", f'{{"{pace(world.run)}": {{"l4": {hour}}}}}'.replace("'", '"').encode()
    )
    recipe = tmp_path / "out" / world.run.folder / "recipe.yaml"
    said = CliRunner().invoke(app, ["plan", str(recipe)], env={"COLUMNS": "300"})
    assert said.exit_code == 0, said.output
    # an hour for each of 12 samples, 2 GPUs a pod at 0.80 an hour; nothing measured or stated of the other columns
    assert "In a cluster: 24.00 GPU-hours, cost 19.20" in said.output
    assert "by the rates of earlier runs: embed;" in said.output
    run_status.keep_prediction(world.run, here=False)
    with controlled(world.api, Work()):
        world.launch()
    ReportStep().run(load_run(uri(world.run)))
    page = (tmp_path / "out" / world.run.folder / "report.html").read_text()
    assert "24.00 GPU-hours, cost 19.20" in page
    assert page.count("core-hours, cost 0.00") >= 2  # of the index, and in all


def pace(run: Run) -> str:
    from pipelines.planning.measured import pace_of

    return pace_of(run, "embed")

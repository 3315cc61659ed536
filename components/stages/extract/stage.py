"""extract: the URLs and texts of images, from Common Crawl's files or from tables, each pair once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from components.base.errors import PermanentError, RecaptionError
from components.engine.stage import Needs, Step
from components.pool.run import Run
from components.pool.shards import read_json
from components.stages.extract.extraction import Extraction, load_extraction

log = logging.getLogger(__name__)


class ExtractStep(Step):
    """A run has it twice: without a part its tasks read files, with the part `dedup` they work through partitions."""

    name = "extract"
    summary = "find images and their texts in Common Crawl's files or in tables of URLs, each pair once"
    reads = ("WAT, WARC or tables",)
    writes = "candidates/<dump>: uid, url, text per shard of 10,000; candidates.json"
    needs = Needs(memory_gib=2)
    divisible = True
    spread = True
    _read: Extraction | None = None

    @property
    def unit(self) -> str:  # type: ignore[override]  # of either part
        return "partitions" if self.part else "files"

    def run(self, run: Run) -> None:
        for task in self.unfinished(run, False):
            self.run_task(run, task, self.count_tasks(run))
        if self.part:
            self._finish(run)

    def count_tasks(self, run: Run) -> int:
        extraction = self._extraction(run)
        return extraction.dedup_tasks if self.part else extraction.tasks

    def unfinished(self, run: Run, done: bool) -> Sequence[int]:
        if _is_finished(run):
            return ()
        extraction = self._extraction(run)
        there = {entry.path for entry in run.storage.list(f"{extraction.folder}/") if entry.path.endswith(".done.json")}
        records = [self._records(extraction, task) for task in range(self.count_tasks(run))]
        return [task for task, needed in enumerate(records) if not there >= needed]

    def count_units(self, run: Run, task: int | None) -> int:
        if _is_finished(run):
            return 0
        extraction = self._extraction(run)
        if self.part:
            return extraction.partitions if task is None else len(extraction.partitions_of(task))
        return len(extraction.files) if task is None else len(extraction.files_of(task, extraction.tasks))

    def run_task(self, run: Run, task: int, tasks: int) -> None:
        if _is_finished(run):
            return
        try:
            self._work_on(run, self._extraction(run), task, tasks)
        except RecaptionError as error:
            if not _is_finished(run):
                raise
            log.info("%s; another run has finished this extraction and deleted its spills", error)

    def _work_on(self, run: Run, extraction: Extraction, task: int, tasks: int) -> None:
        if not self.part:
            from components.stages.extract.task import extract_task

            networks = run.spec.download.allow_networks if run.spec.download else ()
            extract_task(run.storage, extraction, task, tasks, lambda files: self.progress(files, files), networks)
            return
        from components.stages.extract.dedup import Dedup

        dedup = Dedup(run.storage, extraction, extraction.tasks, extraction.partitions_of(task))
        for partition in extraction.partitions_of(task):
            rows = dedup.run(partition).rows
            self.progress(rows, 1)

    def outcome(self, run: Run) -> dict[str, Any]:
        if not self.part or not _is_finished(run):
            return {}
        funnel = _funnel(run)
        return {"samples": funnel["kept"], "failures": funnel["dropped"] | funnel["lost"]}

    def _records(self, extraction: Extraction, task: int) -> set[str]:
        """Return the paths of the records that vouch for a task."""
        if not self.part:
            return {f"{extraction.spills(task)}.done.json"}
        return {f"{extraction.shards(partition)}.done.json" for partition in extraction.partitions_of(task)}

    def _extraction(self, run: Run) -> Extraction:
        """Return the extraction, read once: of a whole dump it has 100,000 paths, and a step is made for one run."""
        assert run.ingest is not None  # no other run has this step
        if self._read is None:
            self._read = load_extraction(run.storage, run.ingest.candidates)
        return self._read

    def _finish(self, run: Run) -> None:
        """Write what was found; then delete the spills, which are larger than all candidates."""
        assert run.ingest is not None
        if not _is_finished(run):
            from components.stages.extract.dedup import finish

            extraction = self._extraction(run)
            finish(run.storage, extraction, extraction.tasks)
        funnel = _funnel(run)
        if not funnel["kept"]:
            dropped = ", ".join(f"{reason} {count:,}" for reason, count in funnel["dropped"].items())
            what = f"{funnel['candidates']:,} images, all of them dropped ({dropped})" if dropped else "no image"
            read = f"files read: {funnel['files']:,}, with {what}"
            raise PermanentError(f"{run.storage.uri}/{_result(run)}: no candidate; {read}")
        for entry in run.storage.list(f"{run.ingest.candidates}/spills/"):
            if entry.path.endswith(".spill"):
                run.storage.delete(entry.path)


def _result(run: Run) -> str:
    assert run.ingest is not None
    return f"{run.ingest.candidates}/candidates.json"


def _is_finished(run: Run) -> bool:
    """Return whether the candidates are found; once the pool is there, they are no longer needed."""
    return run.is_downloaded or run.storage.size(_result(run)) is not None


def _funnel(run: Run) -> dict[str, Any]:
    """Read the counts of a finished extraction."""
    path, key = (run.pool.manifest_path, "extraction") if run.is_downloaded else (_result(run), "funnel")
    return read_json(run.storage, path, lambda value: dict(value[key]))

"""A run: one execution of a recipe, and where everything it makes lies.

candidates/<dump>-<hash>/…              URLs and texts that a pool is downloaded from
pools/<pool>/{shards,retries}/…         its shards, where we downloaded them; <pool> is then <name>-<hash>
pools/<pool>/manifests/<hash>.json      the ordered shards
pools/<pool>/contents/<hash>-<hash>.json   what the index found in them
pools/<pool>/columns/<stage>.<label>-<hash>/<shard>.<key>.<part>.{<sha256>.parquet,done.json}
pools/<pool>/demands/<part>.json        which samples a partial column was asked for
mixtures|datasets|models|evaluations/<mixture>-<hash>/…
runs/<run>/{recipe.yaml,plan.json,unread.json,claim.json,status.json,report.html}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import Any

from components.base.errors import PermanentError
from components.base.hashing import content_hash, said
from components.base.unread import Unread
from components.pool.columns import ALL, Columns
from components.pool.contents import Contents, collect_contents, read_contents, write_contents
from components.pool.shards import Pool, Shard, load_pool, read_json
from components.pool.specs import ColumnSpec
from components.recipe import recipe as schema
from components.recipe.columns import RAW
from components.recipe.mixtures import BestOf, Condition, Mixture, choice_of, firsts_of, texts_of
from components.storage.claims import claim
from components.storage.interface import Storage
from components.storage.opening import open_storage

UNREAD = "unread.json"


@dataclass(frozen=True)
class Node:
    """A column that this run needs."""

    key: str
    """`index`, `embed`, or a stage with the name that the recipe gives to the column, as `caption:NAME`. The cosine of
    a text is `score:NAME`."""
    spec: ColumnSpec
    group: str
    """The node of the coarse graph that computes it."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """By what it is to a rule (text, score, flag, boxes): the field of the column that holds the value."""
    part: str = ALL
    """Which part this run adds: `all`, or the hash of the rules that demand it (see `Run.part`)."""
    demand: str | None = None
    """The column on demand whose demand file says which samples; None asks for every one."""

    @property
    def name(self) -> str:
        """The name that the recipe gives to the column, or to the text whose cosine it is."""
        return self.key.partition(":")[2]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "spec": self.spec.to_json(), "fields": dict(self.fields)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Node:
        return cls(**{**value, "spec": ColumnSpec.from_json(value["spec"])})


@dataclass(frozen=True)
class Ingest:
    """How the images of a pool come to be downloaded."""

    candidates: str
    """Folder of the extraction that finds their URLs."""
    plan: bytes | None = None
    """What the extraction is, to be kept there as plan.json; None where it was."""


@dataclass(frozen=True)
class Run:
    """What a container needs to know; read back from `runs/<name>/`."""

    name: str
    storage: Storage
    recipe: schema.Recipe
    pool: Pool
    nodes: Mapping[str, Node]
    """In the order in which they can be computed."""
    fingerprints: Mapping[str, str]
    """Content of what lies outside the storage and decides a result: the student's config as `student`, an evaluation
    set as `task:<folder>`."""
    ingest: Ingest | None = None
    """None where the pool's shards were there."""
    unread: tuple[Unread, ...] = ()
    """Files that lie where the run's inputs do and are not read, as they were when it was planned last."""
    remarks: tuple[str, ...] = ()
    """Lines that checking the recipe gave, for who plans it; not saved."""

    @property
    def folder(self) -> str:
        return f"runs/{self.name}"

    @property
    def spec(self) -> schema.Spec:
        return self.recipe.spec

    @property
    def tasks(self) -> int:
        """Number of tasks that the columns' work is cut into, frozen when the run was planned, as `save` sees to."""
        return ceil(len(self.pool.shards) / self.spec.compute.shards_per_task)

    @property
    def is_downloaded(self) -> bool:
        """Whether the pool's shards are there."""
        return self.ingest is None or self.storage.size(self.pool.manifest_path) is not None

    @cached_property
    def columns(self) -> Columns:
        return self.open_columns()

    def open_columns(self, shards: Sequence[Shard] | None = None) -> Columns:
        """Open the pool's columns, to see what is there now; `shards` as Columns has it."""
        return Columns(self.storage, self.pool.name, shards, self.contents if self._has_contents else None)

    @property
    def is_indexed(self) -> bool:
        """Whether every shard is indexed as it lay there when the run was planned."""
        return self._has_contents or self.keep_contents(self.open_columns()) is not None

    @cached_property
    def contents(self) -> Contents:
        """Contents of the shards.

        Raises:
            PermanentError: one isn't indexed.
        """
        found = read_contents(self.storage, self._contents_path)
        if found is None:
            found = self.keep_contents(Columns(self.storage, self.pool.name))
        if found is None:
            raise PermanentError(f"pool {self.pool.name}: not all of its shards are indexed; run the index first")
        return found

    def keep_contents(self, columns: Columns) -> Contents | None:
        """Write what the shards contain into a file, which spares everyone else the index's records; None, and
        nothing is written, where a shard isn't indexed."""
        found = collect_contents(columns, self.index, self.pool.shards)
        if found is not None:
            write_contents(self.storage, self._contents_path, found)
        return found

    @property
    def _has_contents(self) -> bool:
        return "contents" in self.__dict__ or self.storage.size(self._contents_path) is not None

    @property
    def _contents_path(self) -> str:
        return f"pools/{self.pool.name}/contents/{self.pool.manifest}-{self.index.hash}.json"

    @cached_property
    def content(self) -> str:
        """Hash of the pool's name and its contents: what of the pool is in the names of results."""
        shards = [[name, content.samples] for name, content in self.contents.items()]
        return content_hash([self.pool.name, self.index.hash, shards])

    @property
    def index(self) -> ColumnSpec:
        return self.nodes["index"].spec

    def text(self, name: str) -> ColumnSpec:
        """Return the column of a text, field `text`; the index has the raw texts."""
        return self.find("text", name).spec

    @property
    def texts(self) -> list[str]:
        """Names of the texts that this run has: raw, and those that some mixture looks at."""
        return [name for name in self.spec.texts if self.has("text", name)]

    def score(self, name: str) -> ColumnSpec:
        """Return the column of a score: of a text its cosine with the image by the recipe's scorer."""
        return self.find("score", name).spec

    def flag(self, name: str) -> ColumnSpec:
        """Return the column of a flag, field `flag`."""
        return self.find("flag", name).spec

    def boxes(self, name: str) -> ColumnSpec:
        """Return the column of boxes, field `boxes`."""
        return self.find("boxes", name).spec

    def tested(self, condition: Condition) -> ColumnSpec:
        """Return the column that a condition looks at."""
        return self.find(condition.about, condition.name).spec

    def find(self, role: str, name: str) -> Node:
        """Return the column that is this text, score, flag or boxes to a rule."""
        return self._by_role[role, name]

    def has(self, role: str, name: str) -> bool:
        """Return whether a column of the run is this text, score, flag or boxes."""
        return (role, name) in self._by_role

    @cached_property
    def _by_role(self) -> dict[tuple[str, str], Node]:
        found = {(role, node.name): node for node in self.nodes.values() for role in node.fields}
        return {("text", RAW): self.nodes["index"], **found}

    @cached_property
    def sees(self) -> Node | None:
        """The column that tells which images can be read: the first score of every image's embedding. None where
        nothing asks for one."""
        scores = (node for node in self.nodes.values() if "score" in node.fields and node.part == ALL)
        return next((node for node in scores if "embedding" in node.spec.inputs), None)

    def part(self, node: Node) -> str:
        """Name the part that this run adds to a column: what a demand comes to depends on the pool's content as well.

        Raises:
            PermanentError: the pool isn't indexed.
        """
        return ALL if node.part == ALL else content_hash([node.part, self.content])

    def lacking(self, columns: Columns, node: Node) -> list[Shard]:
        """Return the shards without this run's part of a column."""
        if node.part != ALL and not self.is_indexed:
            return list(self.pool.shards)
        part = self.part(node)
        return [shard for shard in self.pool.shards if part not in columns.parts(node.spec, shard)]

    def demand_path(self, captioner: str) -> str:
        return f"pools/{self.pool.name}/demands/{self.part(self.find('text', captioner))}.json"

    @property
    def mixtures(self) -> list[Mixture]:
        """The recipe's mixtures, without those that choose the same as one before them: what there is to be made."""
        return [*self._firsts.values()]

    def first_of(self, mixture: Mixture) -> Mixture:
        """Return the recipe's first mixture that chooses the same as this one; most often that is this one."""
        return self._firsts.get(content_hash(choice_of(mixture)), mixture)

    @cached_property
    def _firsts(self) -> dict[str, Mixture]:
        return firsts_of(self.spec.mixtures)

    @property
    def trained(self) -> list[Mixture]:
        """The mixtures a CLIP is trained on, each choice once; an empty one is none of them."""
        train = self.spec.train
        asked = [m for m in self.spec.mixtures if train and (train.mixtures is None or m.name in train.mixtures)]
        firsts = {first.name: first for first in map(self.first_of, asked)}
        return [mixture for mixture in firsts.values() if not self.is_empty(mixture)]

    def trains(self, mixture: Mixture) -> bool:
        """Return whether a CLIP is trained on what this mixture chooses, maybe under another's name."""
        return self.first_of(mixture) in self.trained

    @property
    def written(self) -> list[Mixture]:
        """The mixtures of which a training set is written: the trained ones, or where nothing is trained all that have
        a pair."""
        return self.trained if self.spec.train else [m for m in self.mixtures if not self.is_empty(m)]

    def is_empty(self, mixture: Mixture) -> bool:
        """Return whether the mixture was chosen and has no pair."""
        if not self._has_contents:  # then nothing was chosen, and mixtures have no names yet
            return False
        folder = self.mixture_folder(mixture)
        if folder not in self._empty:
            path = f"{folder}/mixture.json"
            if self.storage.size(path) is None:
                return False
            rows = read_json(self.storage, path, lambda value: sum(shard["rows"] for shard in value["shards"]))
            self._empty[folder] = not rows
        return self._empty[folder]

    @property
    def empty(self) -> dict[str, str]:
        """Return why they have no pair of the recipe's mixtures that were chosen and are empty, by name."""
        found = {m.name: f"{self.mixture_folder(m)}/mixture.json" for m in self.spec.mixtures if self.is_empty(m)}
        return {name: read_json(self.storage, path, _last_warning) for name, path in found.items()}

    @cached_property
    def _empty(self) -> dict[str, bool]:
        """Remember of each mixture that was chosen whether it is empty, by folder, as that never changes."""
        return {}

    def training_only(self, mixture: str) -> Run:
        """Return this run with one trained mixture: no name of what it makes changes.

        Raises:
            PermanentError: it is not trained.
        """
        names = [m.name for m in self.spec.mixtures if self.trains(m)]
        if mixture not in names or self.spec.train is None:
            raise PermanentError(f"mixture {mixture}: run {self.name} trains {', '.join(names) or 'nothing'}")
        train = self.spec.train.model_copy(update={"mixtures": [mixture]})
        spec = self.spec.model_copy(update={"train": train})
        return replace(self, recipe=self.recipe.model_copy(update={"spec": spec}))

    def mixture_folder(self, mixture: Mixture) -> str:
        """Return the folder of what a mixture chooses: mixtures that choose the same share that of the first.

        Raises:
            PermanentError: the pool, whose content is in the name, isn't indexed.
        """
        mixture = self.first_of(mixture)
        texts = {name for rule in mixture.rules for name in texts_of(rule)}
        used = {name: self.text(name).hash for name in texts}
        # Cosines that are there for other mixtures decide nothing in this one.
        best = {name for rule in mixture.rules if isinstance(rule.text, BestOf) for name in texts_of(rule)}
        used |= {f"score:{name}": self.score(name).hash for name in best}
        for condition in (*(c for rule in mixture.rules for c in rule.where), *self.spec.drop):
            used[f"{condition.about}:{condition.name}"] = self.tested(condition).hash
        if self.sees and f"score:{RAW}" not in used:  # raw's cosine tells it, too
            used["images"] = "those that can be read"
        used |= {f"blurred:{name}": self.boxes(name).hash for name in self.spec.training_sets.blur}
        made_by = [said(mixture, "name"), used, self.content, self.spec.drop]
        return f"mixtures/{mixture.name}-{content_hash(made_by)}"

    def cosines(self, mixture: Mixture) -> dict[str, str]:
        """Return the folders of the cosines that this run has of a mixture's texts, by text."""
        texts = sorted({name for rule in mixture.rules for name in texts_of(rule)})
        return {name: self.score(name).folder for name in texts if self.has("score", name)}

    def dataset_folder(self, mixture: Mixture) -> str:
        return f"datasets/{self._derived(mixture, self.mixture_folder(mixture))}"

    def model_folder(self, mixture: Mixture) -> str:
        if not self.spec.train:
            raise PermanentError(f"recipe {self.recipe.name} trains nothing: it has no spec.train")
        train = said(self.spec.train, "mixtures")
        return f"models/{self._derived(mixture, self.dataset_folder(mixture), train, self.fingerprints.get('student'))}"

    def evaluation_folder(self, mixture: Mixture) -> str:
        """Return the folder of a model's results, a file per task; whatever else is evaluated, it is the same."""
        if not self.spec.evaluate:
            raise PermanentError(f"recipe {self.recipe.name} evaluates nothing: it has no spec.evaluate")
        return f"evaluations/{self._derived(mixture, self.model_folder(mixture))}"

    def results_path(self, mixture: Mixture) -> str:
        """Return the file that brings together the results of this run's tasks, as their data sets were planned."""
        tasks = {key: value for key, value in self.fingerprints.items() if key.startswith("task:")}
        asked = said(self.spec.evaluate) if self.spec.evaluate else {}
        return f"{self.evaluation_folder(mixture)}/results-{content_hash([asked, tasks])}.json"

    def _derived(self, mixture: Mixture, *made_from: object) -> str:
        return f"{self.first_of(mixture).name}-{content_hash(list(made_from))}"

    def status(self) -> dict[str, Any]:
        """Read status.json: state, shards, samples, seconds and failures by stage; empty before the first stage."""
        path = f"{self.folder}/status.json"
        return json.loads(self.storage.read(path)) if self.storage.size(path) is not None else {}

    @property
    def is_finished(self) -> bool:
        """Whether its report, which comes last, is written."""
        return bool(self.status().get("stages", {}).get("report", {}).get("state") == "done")

    def save_status(self, status: Mapping[str, Any]) -> None:
        self.storage.write(f"{self.folder}/status.json", json.dumps(status, indent=1).encode())

    def claim(self, by: str) -> str:
        """Claim this run, once; who holds it now: `by`, or whoever came first."""
        return claim(self.storage, f"{self.folder}/claim.json", by)

    def save(self) -> None:
        """Keep what is known of the pool and the plan, once, and the recipe with how it is to be computed this time.

        Raises:
            PermanentError: this run was planned before, otherwise (another number of tasks, say).
        """
        if self.ingest is None:
            self.pool.save(self.storage)
        elif self.ingest.plan is not None:
            path = f"{self.ingest.candidates}/plan.json"
            if not self.storage.create(path, self.ingest.plan) and self.storage.read(path) != self.ingest.plan:
                self.storage.write(path, self.ingest.plan)  # where it is read from, which the name doesn't have
        unread = json.dumps([found.to_json() for found in self.unread], indent=1).encode()
        if self.unread or self.storage.size(f"{self.folder}/{UNREAD}") is not None:
            self.storage.write(f"{self.folder}/{UNREAD}", unread)
        plan = json.dumps(self.to_json(), indent=1, sort_keys=True).encode()
        recipe = schema.dump_recipe(self.recipe).encode()
        self.storage.create(f"{self.folder}/recipe.yaml", recipe)
        if not self.storage.create(f"{self.folder}/plan.json", plan):
            if self.storage.read(f"{self.folder}/plan.json") != plan:
                old = read_json(self.storage, f"{self.folder}/plan.json", lambda value: {**value})
                raise PermanentError(f"run {self.name}: planned before, {_difference(old, json.loads(plan))}")
            if self.storage.read(f"{self.folder}/recipe.yaml") != recipe:  # spec.compute, which the name doesn't have
                self.storage.write(f"{self.folder}/recipe.yaml", recipe)

    def to_json(self) -> dict[str, Any]:
        per_task = self.spec.compute.shards_per_task
        cut = (
            {"tasks": self.tasks}
            if self.ingest is None
            else {"candidates": self.ingest.candidates, "shards_per_task": per_task}
        )
        return {
            "run": self.name,
            "pool": self.pool.name,
            "source": self.pool.source.uri,
            "manifest": self.pool.manifest,
            **cut,
            "nodes": [node.to_json() for node in self.nodes.values()],
            "fingerprints": dict(self.fingerprints),
        }


def load_run(uri: str) -> Run:
    """Return the run at `<storage>/runs/<name>`.

    Raises:
        PermanentError: there is no plan.
    """
    root, _, name = uri.rstrip("/").rpartition("/")
    if root.rpartition("/")[2] != "runs":
        raise PermanentError(f"run {uri}: expected <storage>/runs/<run>, as `recaption run` prints it")
    storage = open_storage(root.removesuffix("runs").rstrip("/") or ("/" if root.startswith("/") else "."))
    if storage.size(f"runs/{name}/plan.json") is None:
        raise PermanentError(
            f"run {uri}: there is no plan.json; expected <storage>/runs/<run>, as `recaption run` prints it"
        )
    recipe = schema.parse_recipe(storage.read(f"runs/{name}/recipe.yaml").decode(), f"{uri}/recipe.yaml")

    def made(plan: Mapping[str, Any]) -> Run:
        path = f"runs/{name}/{UNREAD}"
        unread = () if storage.size(path) is None else read_json(storage, path, _unread)
        pool = load_pool(plan["pool"], plan["manifest"], storage, open_storage(plan["source"]))
        nodes = {value["key"]: Node.from_json(value) for value in plan["nodes"]}
        ingest = Ingest(plan["candidates"]) if "candidates" in plan else None
        return Run(name, storage, recipe, pool, nodes, plan["fingerprints"], ingest, unread)

    return read_json(storage, f"runs/{name}/plan.json", made)


def _unread(values: Sequence[Mapping[str, Any]]) -> tuple[Unread, ...]:
    return tuple(map(Unread.from_json, values))


def _last_warning(chosen: Mapping[str, Any]) -> str:
    return str(chosen["warnings"][-1])


CUT = ("tasks", "shards_per_task", "manifest", "source")


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    changed = [key for key in after if before.get(key) != after[key]]
    what = ", ".join(f"{k} was {before.get(k)}, is {after[k]}" for k in changed if k in CUT)
    return (
        f"with another plan ({what or 'changed: ' + ', '.join(changed)}); use the same values, or another metadata.name"
    )

"""Plans the columns that a recipe needs: the index, and whatever its mixtures look at or is computed from it."""

from __future__ import annotations

from collections.abc import Iterator

from components.engine.registry import provider, stage_of
from components.pool.columns import ALL
from components.pool.run import Node
from components.pool.specs import ColumnSpec
from components.recipe.columns import RAW, Column
from components.recipe.recipe import Recipe
from components.recipe.scorer import Scorer
from components.selection.demand import demand_part
from components.selection.needs import asked_of
from pipelines.planning.graph_nodes import GROUPS, group_of

SCORER = "spec.scorer"  # the scorer's place in a recipe, for messages


def plan_columns(recipe: Recipe) -> list[Node]:
    """Return the columns that a recipe asks for in an order in which they can be computed.

    Raises:
        PermanentError: a model, file or folder that one of them names is not there.
    """
    planner = _Planner(recipe)
    known = list(planner.for_every_sample())
    hashes = {node.key: node.spec.hash for node in known}
    nodes = [*known, *planner.on_demand(hashes)]
    return sorted(nodes, key=lambda node: GROUPS.index(node.group))


class _Planner:
    """Makes the columns one after the other: a later one reads earlier ones."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.spec, self.asked = recipe, recipe.spec, asked_of(recipe.spec)
        self.index: ColumnSpec = provider("index").make_index()
        self.texts = {RAW: self.index}
        self.embeddings: dict[Scorer, Node] = {}

    def for_every_sample(self) -> Iterator[Node]:
        """Yield the columns that are computed for every sample."""
        yield Node("index", self.index, "index")
        if self.asked.cosines:
            self._embedding(None, "", SCORER)
        # What reads another text than the raw one comes after the columns that bring texts.
        listed = sorted(enumerate(self.spec.columns), key=lambda entry: entry[1].options.source_text != RAW)
        wanted = [(i, column) for i, column in listed if column.name in self.asked.columns]
        nodes = [self._node(i, column) for i, column in wanted if not column.options.on_demand]
        yield from self.embeddings.values()
        for name, text in self.texts.items():
            yield from self._score(name, text, "score", ALL)
        yield from nodes

    def on_demand(self, hashes: dict[str, str]) -> Iterator[Node]:
        """Yield the columns that are computed for some samples, each with its score; `hashes` are of all others."""
        for i, column in enumerate(self.spec.columns):
            if column.options.on_demand and column.name in self.asked.columns:
                part = demand_part(self.recipe, column.name, hashes)
                node = self._node(i, column, part)
                yield node
                yield from self._score(column.name, node.spec, "score-captions", part)

    def _node(self, i: int, column: Column, part: str = ALL) -> Node:
        stage, options, where = stage_of(column.kind), column.options, f"spec.columns[{i}].{column.kind}"
        reads = options.reads or stage.reads
        inputs = {"index": self.index}
        if "embedding" in reads:
            inputs["embedding"] = self._embedding(options.scorer, column.name, where)
        if "text" in reads:
            inputs["text"] = self.texts[options.source_text]
        spec = stage.make_spec(options, where, inputs)
        if "text" in column.roles:
            self.texts[column.name] = spec
        named = [field.name for field in stage.fields]
        fields = {str(role): role if role in named else stage.provides for role in column.roles}
        group = group_of(stage, reads, options.on_demand)
        demand = None if part == ALL else column.name
        return Node(f"{stage.name}:{column.name}", spec, group, fields, part, demand)

    def _embedding(self, scorer: Scorer | None, name: str, where: str) -> ColumnSpec:
        """Return a scorer's embeddings, which are computed once; None is the recipe's scorer."""
        key = "embed"
        if scorer is None or scorer == self.spec.scorer:
            scorer, where = self.spec.scorer, SCORER
        else:
            key = f"embed:{name}"
        if scorer not in self.embeddings:
            spec = provider("embedding").of_scorer(scorer, where, self.index)
            self.embeddings[scorer] = Node(key, spec, "embed")
        return self.embeddings[scorer].spec

    def _score(self, name: str, text: ColumnSpec, group: str, part: str) -> Iterator[Node]:
        """Yield the cosine of a text where something asks for it."""
        if name in self.asked.cosines:
            stage = provider("cosine")
            spec = stage.of_text(self.index, self.embeddings[self.spec.scorer].spec, text)
            yield Node(f"{stage.name}:{name}", spec, group, {"score": "cosine"}, part)

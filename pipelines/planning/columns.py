"""Plans the columns that a recipe needs: the index, and whatever its mixtures look at or is computed from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
        PermanentError: a model, file or folder that the recipe names is not there, asked for or not.
    """
    planner = _Planner(recipe)
    known = planner.with_embeddings(_asked(recipe, planner.for_every_sample()))
    late = _asked(recipe, planner.on_demand({node.key: node.spec.hash for node in known}))
    found = {node.key: node for node in planner.with_embeddings([*known, *late])}
    return sorted(found.values(), key=lambda node: GROUPS.index(node.group))


def _asked(recipe: Recipe, nodes: Iterable[Node]) -> list[Node]:
    """Return those of the columns that something looks at."""
    asked, texts = asked_of(recipe.spec), recipe.spec.texts

    def is_asked(node: Node) -> bool:
        if node.key.startswith(f"{provider('cosine').name}:") and node.name in texts:
            return node.name in asked.cosines
        return not node.name or node.name in asked.columns

    return [node for node in nodes if is_asked(node)]


class _Planner:
    """Makes the columns one after the other: a later one reads earlier ones."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.spec = recipe, recipe.spec
        self.index: ColumnSpec = provider("index").make_index()
        self.texts = {RAW: self.index}
        self.embeddings = {self.spec.scorer: self._embedding("embed", self.spec.scorer, SCORER)}
        """The scorers' embeddings, which other columns are computed from."""

    def for_every_sample(self) -> Iterator[Node]:
        """Yield the columns that are computed for every sample."""
        yield Node("index", self.index, "index")
        # What reads another text than the raw one comes after the columns that bring texts.
        asked = sorted(enumerate(self.spec.columns), key=lambda entry: entry[1].options.source_text != RAW)
        nodes = [self._node(i, column) for i, column in asked if not column.options.on_demand]
        for name, text in self.texts.items():
            yield self._score(name, text, "score", ALL)
        yield from nodes

    def on_demand(self, hashes: dict[str, str]) -> Iterator[Node]:
        """Yield the columns that are computed for some samples, each with its score; `hashes` are of all others."""
        for i, column in enumerate(self.spec.columns):
            if column.options.on_demand:
                part = demand_part(self.recipe, column.name, hashes)
                node = self._node(i, column, part)
                yield node
                yield self._score(column.name, node.spec, "score-captions", part)

    def with_embeddings(self, nodes: Sequence[Node]) -> list[Node]:
        """Return the embeddings that these columns are computed from, and then the columns."""
        read = {spec.hash for node in nodes for spec in node.spec.inputs.values()}
        return [*(node for node in self.embeddings.values() if node.spec.hash in read), *nodes]

    def _node(self, i: int, column: Column, part: str = ALL) -> Node:
        stage, options, where = stage_of(column.kind), column.options, f"spec.columns[{i}].{column.kind}"
        reads = options.reads or stage.reads
        scorer = options.scorer or self.spec.scorer
        if scorer not in self.embeddings:
            self.embeddings[scorer] = self._embedding(f"embed:{column.name}", scorer, where)
        there = {"embedding": self.embeddings[scorer].spec, "text": self.texts[options.source_text]}
        inputs = {"index": self.index, **{role: there[role] for role in reads if role in there}}
        spec = stage.make_spec(options, where, inputs)
        if "text" in column.roles:
            self.texts[column.name] = spec
        named = [field.name for field in stage.fields]
        fields = {str(role): role if role in named else stage.provides for role in column.roles}
        group = group_of(stage, reads, options.on_demand)
        demand = None if part == ALL else column.name
        return Node(f"{stage.name}:{column.name}", spec, group, fields, part, demand)

    def _embedding(self, key: str, scorer: Scorer, where: str) -> Node:
        return Node(key, provider("embedding").of_scorer(scorer, where, self.index), "embed")

    def _score(self, name: str, text: ColumnSpec, group: str, part: str) -> Node:
        stage = provider("cosine")
        spec = stage.of_text(self.index, self.embeddings[self.spec.scorer].spec, text)
        return Node(f"{stage.name}:{name}", spec, group, {"score": "cosine"}, part)

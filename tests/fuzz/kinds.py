"""All kinds of hostile inputs, by name."""

from __future__ import annotations

from tests.fuzz import images, pages, recipes, servers, shards, tables
from tests.fuzz.limits import Case

KINDS: dict[str, Case] = {
    **images.KINDS,
    **shards.KINDS,
    **tables.KINDS,
    **pages.KINDS,
    **servers.KINDS,
    **recipes.KINDS,
}

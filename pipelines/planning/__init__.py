"""From a recipe to a run: which columns it needs, in which order, and what they will cost."""

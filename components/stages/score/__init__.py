"""The score stage: the cosine of a text with its image."""

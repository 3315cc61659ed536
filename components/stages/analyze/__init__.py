"""Statistics of the texts: length, diversity, alignment (paper, section 6)."""

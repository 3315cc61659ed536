"""What the texts are like: length, diversity, alignment (paper, section 6)."""

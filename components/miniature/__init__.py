"""The miniature: a rendered world with noisy alt text, and models small enough for two cores in the real formats."""

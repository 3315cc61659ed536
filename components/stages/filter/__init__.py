"""DataComp's filters by raw text and image size, as flags for the rules."""

"""aesthetic: how much people would like an image, by a linear head over its stored embedding."""

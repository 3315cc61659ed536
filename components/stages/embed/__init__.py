"""The embed stage: one image embedding per sample."""

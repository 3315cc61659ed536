"""Zero-shot evaluation of the trained models."""

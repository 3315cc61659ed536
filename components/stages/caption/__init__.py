"""The caption stage: one sampled caption per image."""

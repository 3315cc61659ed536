"""Hostile inputs, made at random from a seed: whatever they hold, the answer is a result or a clear line."""

"""Hostile inputs, made at random from a seed: whatever a file or server holds, the answer is a result or a clear line."""

"""Runs a recipe on this machine, and keeps the status of a run."""

"""Writes the generated parts of README.md and docs/: `make docs`."""

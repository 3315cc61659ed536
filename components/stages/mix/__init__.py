"""Choosing the text of each image."""

"""Columns made elsewhere."""

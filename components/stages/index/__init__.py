"""The index: what a shard holds."""

"""The pool as a table: its shards, its columns, and the run that asks for them."""

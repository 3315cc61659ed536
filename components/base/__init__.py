"""The standard library's neighbours: errors, versions, hashing, threads."""

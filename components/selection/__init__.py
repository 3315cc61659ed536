"""Which text each image gets: exact top-x %, rules and demand, as functions over columns."""

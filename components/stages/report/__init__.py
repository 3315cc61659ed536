"""The report: every number of a run on one page."""

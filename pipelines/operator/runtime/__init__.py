"""What every reconciliation uses: the queue of objects, the Lease, KFP, metrics, writes to the API server."""

"""What every reconciliation of the operator uses: the objects' queue, the lease, KFP, metrics, writes."""

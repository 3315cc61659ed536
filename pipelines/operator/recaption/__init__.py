"""The reconciliation of a Recaption: what to do about it (decide), and the calls that do it (reconcile)."""

"""What everything stands on, without torch: recipe, storage, shards, columns, the worker loop, the ledger."""

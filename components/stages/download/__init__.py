"""Candidates (uid, url, text) to shards in DataComp's layout, by a client that is polite and can't be led astray."""

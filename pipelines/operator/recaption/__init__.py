"""The Recaption: what to do about it, and the doing."""

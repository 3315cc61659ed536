"""How lines start that a training's processes print for their parent to read."""

FAILURE = "recaption-failure "  # then {"kind": "memory" | "permanent" | "temporary", "message": …}
UNDECODABLE = "undecodable image"  # then the tar, the sample and the reason

"""faces: where faces are in an image. Nothing is blurred here: `reshard` does that."""

"""What runs a column stage: the contract of a stage, the worker loop, and the decoding of images."""

"""What runs in a container: one package a stage, `models` for what needs torch, `pool` for what all stand on."""

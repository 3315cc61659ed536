"""The stages: one package for each container step. No stage imports another one."""

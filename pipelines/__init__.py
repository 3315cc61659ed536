"""Who runs the stages: the command line, this machine, Kubeflow, the operator. Nothing here computes a value."""

"""Train CLIP on a training set, with open_clip's own trainer and DataComp's fixed hyperparameters."""

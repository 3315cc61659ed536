"""DataComp's scales: its fixed hyperparameters, so that only the data differs between two trainings."""

from components.recipe.training import ScaleConfig, Train

# mlfoundations/datacomp, scale_configs.py and slurm_train.sh (xlarge's precision).
SCALES = {
    "debug": ScaleConfig(model="ViT-B-32", batch_size=1024, learning_rate=1e-4, warmup=500, samples=128_000),
    "small": ScaleConfig(model="ViT-B-32", batch_size=4096, learning_rate=5e-4, warmup=500, samples=12_800_000),
    "medium": ScaleConfig(model="ViT-B-32", batch_size=4096, learning_rate=5e-4, warmup=500, samples=128_000_000),
    "large": ScaleConfig(model="ViT-B-16", batch_size=8192, learning_rate=5e-4, warmup=500, samples=1_280_000_000),
    "xlarge": ScaleConfig(
        model="ViT-L-14",
        batch_size=90112,
        learning_rate=1e-3,
        warmup=10000,
        samples=12_800_000_000,
        beta2=0.95,
        precision="amp_bfloat16",
    ),
}

WORKERS = 4  # DataComp's data loading processes per GPU; its numbers of steps are multiples of it


def scale_of(train: Train) -> tuple[ScaleConfig, int]:
    """Return the hyperparameters, and the number that a checkpoint's steps are a multiple of."""
    return (SCALES[train.scale], WORKERS) if isinstance(train.scale, str) else (train.scale, 1)

"""Zero-shot results against a straight computation, gaps, and resumption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from components.miniature.demo import WEIGHTS
from components.miniature.pool import write_evaluation
from components.recipe.training import Evaluate
from components.stages.evaluate.metrics import measure_all
from components.stages.evaluate.student import Student
from components.stages.evaluate.tasks import Task, gap, tasks_of
from components.storage.local import LocalStorage


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_evaluation(folder, 120, seed=77)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars open
def test_metrics_are_what_a_straight_computation_gives(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import io
    import tarfile

    from PIL import Image

    from components.models.clip import load_clip

    config = json.loads((WEIGHTS / "scorer" / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_tokenizer_name"] = str(WEIGHTS / "scorer")
    (tmp_path / "student.json").write_text(json.dumps(config))
    weights = str(WEIGHTS / "scorer" / "open_clip_model.safetensors")
    student = Student(str(tmp_path / "student.json"), weights)
    assert "randomly" not in caplog.text
    found = student.predict(root / "miniature-retrieval")
    metrics = measure_all(found)
    assert (found.kind, found.images) == ("retrieval", 500)

    images, texts = [], []
    with tarfile.open(root / "miniature-retrieval" / "test" / "0.tar") as tar:
        for member in tar:
            data = tar.extractfile(member)
            assert data is not None
            if member.name.endswith("jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB")))
            else:
                texts.append(data.read().decode())
    clip = load_clip(str(tmp_path / "student.json"), weights)
    scores = clip.embed_texts(texts).astype(np.float32) @ clip.embed_images(np.stack(images)).astype(np.float32).T
    right = np.arange(500)
    expected = ((scores.argmax(1) == right).mean() + (scores.argmax(0) == right).mean()) / 2
    assert metrics["mean_recall@1"] == pytest.approx(expected, abs=0.02)  # preprocessing normalises differently

    found = student.predict(root / "miniature-classes")
    metrics = measure_all(found)
    assert (found.kind, found.images) == ("classification", 120)
    assert 0 < metrics["acc1"] <= metrics["acc5"] <= 1


def test_datacomps_tasks_and_their_gaps(root: Path) -> None:
    tasks = tasks_of(Evaluate(root=str(root)))
    assert len(tasks) == 38
    reasons = {task.name: gap(task, LocalStorage(root)) for task in tasks}
    assert all(reasons.values())
    assert reasons["WinoGAViL"] == "its metric jaccard_score_10-12 is not implemented"
    assert "wds_imagenet1k_test (test/nshards.txt is missing)" in str(reasons["ImageNet 1k"])
    assert gap(Task("m", "miniature-classes"), LocalStorage(root)) is None

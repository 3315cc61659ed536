"""faces through the worker loop, and a run that blurs them in its training set."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.base.errors import PermanentError
from components.engine.worker import run_task
from components.pool.run import Run
from components.recipe.recipe import parse_recipe
from components.stages.faces.stage import Faces, FacesStage
from components.stages.reshard.blur import blurred
from pipelines.execution.local import run_all
from pipelines.planning.graph_nodes import groups
from pipelines.planning.plan import plan_run
from tests.components.stages.faces.pictures import FACE, hopper, overlap, save_yunet
from tests.filled import planned
from tests.pipelines.execution.test_local import recipe_text
from tests.pipelines.test_cli import invoke
from tests.pools import encode, indexed, jpeg, sample, uid, write_tar

ONE, NONE, TWO, BROKEN, TURNED = range(5)
BLURRED = {"blur": ["faces"]}
AT = "spec.columns[0].faces"
FACES = [{"name": "faces", "faces": {}}]
MIXTURE = [{"name": "all", "rules": [{"text": "raw", "where": [{"score": "raw", "atLeast": -1}]}]}]


def images() -> list[bytes]:
    """A face, none, two, a broken file, and a face that a camera held sideways."""
    two = Image.new("RGB", (512, 300), "grey")
    two.paste(hopper(), (0, 0))
    two.paste(hopper(), (256, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(hopper().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    return [encode(hopper(), "JPEG", quality=95), jpeg(1, (200, 150)), encode(two, "PNG"), jpeg(1)[:300], turned]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "shards"
    write_tar(folder / "00000000.tar", {f"k{i}": sample(i, jpg=data) for i, data in enumerate(images())})
    return folder


@pytest.mark.parametrize("decoders", [0, 1])
def test_boxes_are_of_each_image_as_it_is(shards: Path, tmp_path: Path, decoders: int) -> None:
    pool, columns, index = indexed(shards, tmp_path)
    spec = FacesStage.make_spec(Faces(), AT, {"index": index})
    run_task(FacesStage(spec), pool, pool.shards, columns, batch_size=2, decoders=decoders)
    table = columns.read(spec, pool.shards[0])
    assert table.column("score").to_pylist() == [1, 0, 2, None, 1]
    assert [error is None for error in table.column("error").to_pylist()] == [i != BROKEN for i in range(5)]
    boxes = table.column("boxes").to_pylist()
    assert (boxes[NONE], boxes[BROKEN]) == ([], None)
    assert overlap(boxes[ONE][0], FACE) > 0.75
    assert overlap(boxes[TURNED][0], FACE) > 0.75
    assert overlap(boxes[TWO][1], (0.5 + FACE[0] / 2, FACE[1], 0.5 + FACE[2] / 2, FACE[3])) > 0.75


def test_a_large_image_is_looked_at_smaller(tmp_path: Path) -> None:
    large = Image.new("RGB", (2560, 3000))
    large.paste(hopper((2560, 3000)))
    write_tar(tmp_path / "shards" / "00000000.tar", {"a": sample(0, jpg=encode(large, "JPEG"))})
    pool, columns, index = indexed(tmp_path / "shards", tmp_path / "out")
    spec = FacesStage.make_spec(Faces(), AT, {"index": index})
    stage = FacesStage(spec)
    seen: list[tuple[int, ...]] = []
    run = stage.process
    stage.process = lambda batch: seen.extend(p.shape for p in batch.pictures) or run(batch)  # type: ignore[method-assign,func-returns-value]
    run_task(stage, pool, pool.shards, columns, decoders=0)
    assert seen == [(640, 546, 3)]
    assert overlap(columns.read(spec, pool.shards[0]).column("boxes")[0].as_py()[0], FACE) > 0.75


def test_yunet_and_the_cascade_are_two_columns(shards: Path, tmp_path: Path) -> None:
    pool, columns, index = indexed(shards, tmp_path)
    weights = save_yunet(tmp_path / "yunet.onnx")
    specs = [FacesStage.make_spec(Faces(weights=w), AT, {"index": index}) for w in (None, str(weights))]
    assert len({spec.hash for spec in specs}) == 2
    run_task(FacesStage(specs[1]), pool, pool.shards, columns, decoders=0)
    assert columns.read(specs[1], pool.shards[0]).column("score").to_pylist() != [1, 0, 2, None, 1]
    with pytest.raises(PermanentError, match=r"spec\.columns\[0\]\.faces\.weights: .* does not exist"):
        FacesStage.make_spec(Faces(weights=str(tmp_path / "no")), AT, {"index": index})


def made(shards: Path, out: Path, **spec: Any) -> Run:
    text = recipe_text(out, shards, MIXTURE, columns=FACES, **spec)
    out.mkdir(exist_ok=True)
    (out / "recipe.yaml").write_text(text)
    invoke("run", str(out / "recipe.yaml"))
    return plan_run(parse_recipe(text))


def members(run: Run) -> dict[str, dict[str, Any]]:
    """By uid: image and metadata of the training set's samples."""
    found: dict[str, dict[str, Any]] = {}
    for tar in sorted(Path(run.storage.uri, run.dataset_folder(run.spec.mixtures[0])).glob("*.tar")):
        with tarfile.open(tar) as file:
            names = file.getnames()
            contents = [file.extractfile(name).read() for name in names]  # type: ignore[union-attr]
        for i in range(0, len(names), 3):
            meta = json.loads(contents[i + 1])
            found[meta["uid"]] = {"image": contents[i], "name": names[i], "meta": meta}
    return found


def test_a_run_blurs_the_faces_of_its_training_set(shards: Path, tmp_path: Path) -> None:
    plain, blurry = made(shards, tmp_path / "plain"), made(shards, tmp_path / "blurry", trainingSets=BLURRED)
    assert plain.dataset_folder(plain.spec.mixtures[0]) != blurry.dataset_folder(blurry.spec.mixtures[0])
    assert "faces:faces" not in plain.nodes, "nothing is blurred in it"
    before, after = members(plain), members(blurry)
    assert before.keys() == after.keys() == {uid(i) for i in range(5) if i != BROKEN}
    assert [before[uid(i)]["image"] for i in (ONE, NONE, TWO, TURNED)] == [
        images()[i] for i in (ONE, NONE, TWO, TURNED)
    ]
    assert after[uid(NONE)]["image"] == images()[NONE], "an image without a face is copied as it is"
    for number, count in ((ONE, 1), (NONE, 0), (TWO, 2), (TURNED, 1)):
        found = after[uid(number)]
        assert len(found["meta"]["face_bboxes"]) == count
        assert "face_bboxes" not in before[uid(number)]["meta"]
        if count:
            assert found["name"].endswith(".jpg")
            assert found["image"] == blurred(images()[number], found["meta"]["face_bboxes"])
    card = blurry.storage.read(f"{blurry.dataset_folder(blurry.spec.mixtures[0])}/README.md").decode()
    assert "**Faces are blurred**" in card
    assert (
        "**Faces are blurred**"
        not in plain.storage.read(f"{plain.dataset_folder(plain.spec.mixtures[0])}/README.md").decode()
    )


def test_crowds_can_be_dropped_and_what_nobody_looked_at_is_not_let_through(shards: Path, tmp_path: Path) -> None:
    run = made(shards, tmp_path / "out", trainingSets=BLURRED, drop=[{"score": "faces", "atLeast": 2}])
    [mixture] = run.spec.mixtures
    found = json.loads(run.storage.read(f"{run.mixture_folder(mixture)}/mixture.json"))
    assert found["dropped"] == {"the image can't be read": 1, "dropped: score faces ≥ 2": 1}
    assert members(run).keys() == {uid(i) for i in (ONE, NONE, TURNED)}
    assert "The numbers add up." in run.storage.read(f"{run.folder}/report.html").decode()


def test_a_decoder_that_died_over_a_face_costs_the_sample(shards: Path, tmp_path: Path) -> None:
    """As where the decoding process crashes over an image once, and not when it is embedded."""
    run = planned(tmp_path, shards, MIXTURE, columns=FACES, trainingSets=BLURRED)
    spec = run.nodes["faces:faces"].spec
    stage = FacesStage(spec)
    process = stage.process

    def crashing(batch: Any) -> Any:
        values = {key: list(value) for key, value in process(batch).items()}
        return {
            **{key: [None if u == uid(ONE) else v for u, v in zip(batch.uids, column, strict=True)]
               for key, column in values.items()},
            "error": ["image that crashes the decoder" if u == uid(ONE) else None for u in batch.uids],
        }  # fmt: skip

    stage.process = crashing  # type: ignore[method-assign]
    run_task(stage, run.pool, run.pool.shards, run.columns, decoders=0)
    assert run.columns.record(spec, run.pool.shards[0], "all").failures["sample: image that crashes the decoder"] == 1
    run_all(run)
    found = json.loads(run.storage.read(f"{run.mixture_folder(run.spec.mixtures[0])}/mixture.json"))
    assert found["dropped"]["not looked at by faces, so nothing can be blurred"] == 1
    assert uid(ONE) not in members(run)


def test_faces_are_cpu_work_of_the_first_group(shards: Path, tmp_path: Path) -> None:
    run = plan_run(parse_recipe(recipe_text(tmp_path, shards, MIXTURE, columns=FACES, trainingSets=BLURRED)))
    assert groups(run)["index"] == ["index", "faces:faces"]
    assert list(np.unique(list(run.nodes))) == ["embed", "faces:faces", "index", "score:raw"]

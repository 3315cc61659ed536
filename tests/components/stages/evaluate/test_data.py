"""Data sets of zero-shot tasks: read as clip-benchmark reads them, but no member is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset
from numpy.typing import NDArray
from PIL import Image

from components.base.errors import PermanentError
from components.miniature.demo import WEIGHTS, student
from components.stages.evaluate.data import TEMPLATES, ZeroShot
from components.stages.evaluate.student import Student
from tests.components.engine.test_images import bomb
from tests.pools import encode, jpeg, write_tar

Members = Mapping[str, bytes]


def write_task(folder: Path, kind: str, samples: Mapping[str, Members], classes: int = 3) -> Path:
    write_tar(folder / "test/0.tar", samples)
    (folder / "test/nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("".join(f"class {i}\n" for i in range(classes)))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n{c}.\n")
    if kind:
        (folder / "dataset_type.txt").write_text(kind)
    return folder


def npy(array: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(7, exif=exif)


IMAGES = {
    "plain.jpg": jpeg(1),
    "rotated.jpeg": rotated(),
    "grey.png": encode(Image.new("L", (40, 30), 90), "PNG"),
    "alpha.png": encode(Image.new("RGBA", (40, 30), (9, 90, 200, 40)), "PNG"),
    "palette.png": encode(Image.fromarray(np.arange(1200, dtype=np.uint16).astype(np.uint8).reshape(30, 40)), "PNG"),
    "cmyk.jpg": encode(Image.new("CMYK", (40, 30), (0, 200, 200, 0)), "JPEG"),
    "wide.png": encode(Image.fromarray(np.full((30, 40), 0x8000, np.uint16)), "PNG"),
    "new.webp": encode(Image.new("RGB", (40, 30), (200, 9, 9)), "WEBP"),
    "upper.JPG": jpeg(2),
    "a.b.jpg": jpeg(3),  # its key is a, b.jpg no image's name
}
LABELS: dict[str, tuple[str, Any]] = {
    "": ("cls", lambda i: f" {i % 3}\n".encode()),
    "multilabel": ("npy", lambda i: npy(np.eye(3, dtype=np.int64)[i % 3])),
    "Retrieval\n": ("txt", lambda i: f"text {i}\nanother é\n".encode()),
}


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_samples_are_clip_benchmarks(tmp_path: Path, kind: str) -> None:
    name, label = LABELS[kind]
    samples: dict[str, Members] = {}
    for i, (file, data) in enumerate(IMAGES.items()):
        key, _, extension = file.partition(".")
        samples[f"{i}-{key}"] = {name: label(i), extension: data, "json": json.dumps({"i": i}).encode()}
    samples[f"{len(samples) - 1}-a"] = {"jpg": jpeg(4), "b.jpg": jpeg(3), name.upper(): label(1), "png": jpeg(5)}
    folder = write_task(tmp_path, kind, samples)
    ours, theirs = ZeroShot(folder, tensor), build_wds_dataset("x", tensor, data_dir=str(folder))
    assert (ours.classes, ours.templates) == (theirs.classes, theirs.templates)
    assert ours.kind == {"": "classification", "Retrieval\n": "retrieval"}.get(kind, kind)
    pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == len(IMAGES)
    for (image, mine), (expected, other) in pairs:
        assert torch.equal(image, expected)
        np.testing.assert_equal(mine, other)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_member_is_unpickled(tmp_path: Path) -> None:
    """Other members are left alone, and the result is that of the data set without them."""
    sentinel = tmp_path / "sentinel"
    pickled, held = pickle.dumps(Touch(sentinel)), io.BytesIO()
    torch.save(Touch(sentinel), held)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.npy", npy(np.array([Touch(sentinel)], object)))
    more = dict.fromkeys(("pickle", "pkl", "pyd", "x.pickle", "pt.pyd"), pickled)
    more |= {"pth": held.getvalue(), "pt": held.getvalue(), "npz": archive.getvalue(), "json": b"{", "mp": b"\xc1"}
    plain = {f"{i:03d}": {"jpg": jpeg(i), "cls": str(i % 3).encode()} for i in range(6)}
    (tmp_path / "student.json").write_text(json.dumps(student()))
    model = Student(str(tmp_path / "student.json"), str(WEIGHTS / "scorer/open_clip_model.safetensors"))
    expected = model.predict(write_task(tmp_path / "plain", "", plain))
    armed = write_task(tmp_path / "armed", "", {key: {**members, **more} for key, members in plain.items()})
    assert torch.equal(model.predict(armed).scores, expected.scores)
    assert not sentinel.exists()


def test_the_group_of_an_image_is_the_first_number_beside_its_class(tmp_path: Path) -> None:
    rows = [[2, 7], [0, 9], [5, 5]]
    samples = {f"{i}": {"jpg": jpeg(i), "cls": b"0", "npy": npy(np.array(row))} for i, row in enumerate(rows)}
    data = ZeroShot(write_task(tmp_path / "groups", "", samples), tensor)
    for _ in range(2):  # read again, it begins anew
        assert len(list(data)) == 3
        assert data.groups == [2, 0, 5]
    others = [
        np.array(["a"]),
        np.array([0.5]),
        np.array([-1]),
        np.array([]),
        np.array(3.0),
        np.array([Touch(tmp_path)]),
    ]
    samples = {f"{i}": {"jpg": jpeg(i), "cls": b"0", "npy": npy(row)} for i, row in enumerate(others)}
    data = ZeroShot(write_task(tmp_path / "others", "", {**samples, "none": GOOD}), tensor)
    assert len(list(data)) == 7
    assert data.groups == [None, None, None, None, 3, None, None]


def test_a_model_gives_the_groups_with_its_scores(tmp_path: Path) -> None:
    (tmp_path / "student.json").write_text(json.dumps(student()))
    model = Student(str(tmp_path / "student.json"), str(WEIGHTS / "scorer/open_clip_model.safetensors"))
    samples = {f"{i}": {"jpg": jpeg(i), "cls": b"0", "npy": npy(np.array([i % 2]))} for i in range(3)}
    groups = model.predict(write_task(tmp_path / "groups", "", samples)).groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]
    assert model.predict(write_task(tmp_path / "some", "", {**samples, "x": GOOD})).groups is None


GOOD = {"jpg": jpeg(1), "cls": b"0"}
BAD: dict[str, tuple[str, Members, str]] = {
    "objects": ("multilabel", {"jpg": jpeg(1), "npy": b"OBJECTS"}, r"bad\.npy: Object arrays cannot be loaded"),
    "no array": ("multilabel", {"jpg": jpeg(1), "npy": b"\x80\x04."}, r"bad\.npy: "),
    "a shape too large": (
        "multilabel",
        {"jpg": jpeg(1), "npy": npy(np.zeros(3)).replace(b"(3,), }" + b" " * 14, b"(3000000000000,), }  ")},
        r"bad\.npy: ",
    ),
    "no number": ("", {**GOOD, "cls": b"cat"}, r"bad\.cls: invalid literal for int"),
    "no text": ("retrieval", {"jpg": jpeg(1), "txt": b"\xff\xfe"}, r"bad\.txt: 'utf-8' codec can't decode"),
    "no label": ("", {"jpg": jpeg(1), "txt": b"0"}, r"bad: has jpg, txt; expected an image \(webp, png.*\) and cls"),
    "no image": ("", {"cls": b"0", "gif": jpeg(1)}, "bad: has cls, gif; expected an image"),
    "another image": ("", {**GOOD, "jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, r"bad\.jpg: not an"),
    "bomb": ("", {**GOOD, "jpg": bomb()}, r"bad\.jpg: image of too many pixels"),
    "a broken image": ("", {**GOOD, "jpg": jpeg(1)[:400]}, r"bad\.jpg: truncated image"),
    "a class beyond the list": (
        "", {**GOOD, "cls": b"3"},
        r"bad\.cls: found 3, expected 0 to 2, the number of a class of .*task/classnames\.txt, which has 3 lines",
    ),
    "a class below the list": ("", {**GOOD, "cls": b"-1"}, r"bad\.cls: found -1, expected 0 to 2, .*classnames\.txt"),
    "a row for other classes": (
        "multilabel", {"jpg": jpeg(1), "npy": npy(np.zeros(4))},
        r"bad\.npy: found an array of shape \(4,\), expected a 0 or 1 for each of the 3 classes of .*classnames\.txt",
    ),
    "a row of other numbers": (
        "multilabel", {"jpg": jpeg(1), "npy": npy(np.full(3, 2))}, r"bad\.npy: .*expected a 0 or 1 for each",
    ),
    "no texts": ("retrieval", {"jpg": jpeg(1), "txt": b""}, r"bad\.txt: is empty; expected a text"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "members", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_member_is_named(tmp_path: Path, kind: str, members: Members, message: str) -> None:
    sentinel = tmp_path / "sentinel"
    held = {name: npy(np.array([Touch(sentinel)], object)) if d == b"OBJECTS" else d for name, d in members.items()}
    folder = write_task(tmp_path / "task", kind, {"bad": held})
    with pytest.raises(PermanentError, match=rf"task/test/0\.tar: {message}") as caught:
        list(ZeroShot(folder, tensor))
    assert not sentinel.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("test/nshards.txt", "many", "nshards.txt: found 'many', expected the number of tars"),
        ("test/nshards.txt", "0", "nshards.txt: found '0', expected the number of tars"),
        ("test/nshards.txt", "2", r"cannot read .*test/1\.tar: no such file"),
        ("classnames.txt", None, r"cannot read .*classnames\.txt: no such file"),
        ("classnames.txt", "", r"classnames\.txt: is empty; expected one line each"),
        ("classnames.txt", "cat\n\ndog\n", r"classnames\.txt: line 2 of 3 is blank; expected a text on every line"),
        (TEMPLATES, "", r"templates\.txt: is empty"),
        (TEMPLATES, "{c}\na photo\n", r"templates\.txt: line 2 is 'a photo'; expected a text with {c} where"),
        (TEMPLATES, "a photo of a {}.", r"templates\.txt: line 1 is 'a photo of a {}\.'; expected a text with {c}"),
        (TEMPLATES, "{c} by {d}", r"templates\.txt: line 1 is .*expected a text with {c}"),
        (TEMPLATES, "{c} {", r"templates\.txt: line 1 is .*expected a text with {c}"),
    ],
)
def test_a_data_set_that_is_not_whole(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    folder = write_task(tmp_path, "", {"a": GOOD})
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(PermanentError, match=message):
        list(ZeroShot(folder, tensor))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (0, r"test/0\.tar: is damaged after its beginning \(empty file\)"),
        (3300, r"test/0\.tar: is damaged after a\.cls \(unexpected end of data\)"),
    ],
)
def test_a_damaged_tar_is_named_with_the_place(tmp_path: Path, cut: int, message: str) -> None:
    folder = write_task(tmp_path, "", {"a": {"jpg": b"x" * 600, "cls": b"0"}, "b": GOOD})
    tar = folder / "test/0.tar"
    tar.write_bytes(tar.read_bytes()[:cut])
    data = ZeroShot(folder, tensor)
    with pytest.raises(PermanentError, match=message) as caught:
        list(data._samples(data.tars[0]))
    assert "BufferedReader" not in str(caught.value)


def test_tars_without_a_sample_are_said(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"/test: its 1 tars have no sample"):
        list(ZeroShot(write_task(tmp_path, "", {}), tensor))


@pytest.mark.parametrize("name", ["a::b", "a{}b", "{1..2}", "%20 #?"])
def test_any_name_of_a_folder_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert len(list(ZeroShot(write_task(tmp_path / name, "", {"a": GOOD}), tensor))) == 1

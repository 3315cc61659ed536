"""A face that is on every machine that runs the tests, and a detector in YuNet's layout that finds bright squares."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"  # public domain (US Navy)
FACE = (0.29, 0.17, 0.74, 0.56)
"""Around her face, from chin to hair line, by eye: x0, y0, x1, y1."""
STRIDES = (8, 16, 32)


def hopper(size: tuple[int, int] = (256, 300)) -> Image.Image:
    return Image.open(HOPPER).convert("RGB").resize(size)


def overlap(a: tuple[float, ...] | list[float], b: tuple[float, ...] | list[float]) -> float:
    """Intersection over union."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def save_yunet(path: Path) -> Path:
    """YuNet's inputs and outputs (OpenCV, face_detect.cpp): a cell of 32 pixels is a face as far as it is red.

    Its box is as large as the cell, around the cell's upper left corner.
    """
    nodes, constants, outputs = [], [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    red = constant("red", np.array([0, 0, 1 / 255], np.float32).reshape(1, 3, 1, 1))  # of blue, green, red
    for stride in STRIDES:
        pooled = f"pooled_{stride}"
        nodes.append(
            helper.make_node("AveragePool", ["input"], [pooled], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        nodes.append(helper.make_node("Conv", [pooled, red], [f"red_{stride}"]))
        for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            found = f"{kind}_{stride}"
            weight = np.full((width, 1, 1, 1), float(width == 1 and stride == 32), np.float32)
            nodes.append(helper.make_node("Conv", [f"red_{stride}", constant(f"w_{found}", weight)], [f"map_{found}"]))
            nodes.append(helper.make_node("Transpose", [f"map_{found}"], [f"last_{found}"], perm=[0, 2, 3, 1]))
            shape = constant(f"shape_{found}", np.array([1, -1, width], np.int64))
            nodes.append(helper.make_node("Reshape", [f"last_{found}", shape], [found]))
            outputs.append(helper.make_tensor_value_info(found, TensorProto.FLOAT, [1, (320 // stride) ** 2, width]))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 320, 320])
    graph = helper.make_graph(nodes, "yunet", [image], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7), str(path))
    return path

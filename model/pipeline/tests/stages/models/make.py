#!/usr/bin/env python3
"""Writes the ONNX models beside it: tiny ones with the inputs and outputs of real ones, whose
answers a test knows. Needs `pip install onnx==1.23.2`; run it after a change, and commit the files.

    brightness-320.onnx   U²-Net's input; the mask is the red of a pixel
    brightness-1024.onnx  IS-Net's input and batches of any size; likewise
    flat.onnx             U²-Net's input; the same everywhere
    yolov5.onnx           64 pixels, a face of 16 for each of 4x4 cells: its score is its red
    yunet.onnx            64 pixels, a face of 8 for each of 8x8 cells: its score is its red
    wd14.onnx             a tag for red, one for green, one for blue, and one for none
    cl_tagger.onnx        likewise, from -1 to 1, as logits
    numbers.onnx          an input that is no image
    two-inputs.onnx       two images
    classes.onnx          an image, and an output that is neither boxes nor tags nor a mask
"""

import pathlib

import numpy
from onnx import TensorProto, checker, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
FLOAT = TensorProto.FLOAT


def tensor(name, values, kind=numpy.float32):
    return numpy_helper.from_array(numpy.array(values, dtype=kind), name)


def write(name, inputs, outputs, nodes, constants=()):
    ports = [
        [helper.make_tensor_value_info(port, FLOAT, shape) for port, shape in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, name, *ports, initializer=list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    model.producer_name = "make.py"
    checker.check_model(model)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def channel(index, source, target):
    """The channel of an image, as a convolution of one pixel. Its name is that of its weights."""
    weights = [[[[1.0 if it == index else 0.0]] for it in range(3)]]
    return node("Conv", f"{source} w{index}", target), tensor(f"w{index}", weights)


def masks():
    red, weights = channel(0, "x", "y")
    for name, shape in (
        ("brightness-320", [1, 3, 320, 320]),
        ("brightness-1024", ["n", 3, 1024, 1024]),
    ):
        write(name, {"x": shape}, {"y": [shape[0], 1, *shape[2:]]}, [red], [weights])
    none = node("Mul", "y zero", "flat")
    write(
        "flat",
        {"input.1": [1, 3, 320, 320]},
        {"flat": [1, 1, 320, 320]},
        [channel(0, "input.1", "y")[0], none],
        [weights, tensor("zero", [0.0])],
    )


def yolov5():
    """Boxes of 16 pixels at the centres of 4x4 cells; the mean red of a cell is its objectness."""
    red, weights = channel(0, "images", "red")
    boxes = [[[x * 16 + 8.0, y * 16 + 8.0, 16.0, 16.0] for y in range(4) for x in range(4)]]
    nodes = [
        red,
        node("AveragePool", "red", "cells", kernel_shape=[16, 16], strides=[16, 16]),
        node("Reshape", "cells rows", "object"),
        node("Concat", "boxes object class", "output", axis=2),
    ]
    constants = [
        weights,
        tensor("rows", [1, 16, 1], numpy.int64),
        tensor("boxes", boxes),
        tensor("class", numpy.ones((1, 16, 1))),
    ]
    write("yolov5", {"images": [1, 3, 64, 64]}, {"output": [1, 16, 6]}, nodes, constants)


def yunet():
    """The finest grid has the mean red of its cells, from 0 to 255; the others have no face. Boxes
    are at the upper left corners of their cells, half a cell to the right, and of one stride."""
    red, weights = channel(2, "input", "red")
    nodes, outputs = [red], {}
    constants = [weights, tensor("full", [255.0]), tensor("none", [0.0])]
    for stride in (8, 16, 32):
        cells = (64 // stride) ** 2
        pool = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes += [
            node("AveragePool", "red", f"cells{stride}", **pool),
            node("Reshape", f"cells{stride} rows{stride}", f"column{stride}"),
            node("Div", f"column{stride} full", f"part{stride}"),
            node("Mul", f"part{stride} {'one' if stride == 8 else 'none'}", f"cls_{stride}"),
            node("Identity", f"cls_{stride}", f"obj_{stride}"),
            node("Identity", f"box{stride}", f"bbox_{stride}"),
            node("Identity", f"points{stride}", f"kps_{stride}"),
        ]
        constants += [
            tensor(f"rows{stride}", [1, cells, 1], numpy.int64),
            tensor(f"box{stride}", [[[0.5, 0.0, 0.0, 0.0]] * cells]),
            tensor(f"points{stride}", numpy.zeros((1, cells, 10))),
        ]
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            outputs[f"{kind}_{stride}"] = [1, (64 // stride) ** 2, width]
    constants.append(tensor("one", [1.0]))
    write("yunet", {"input": [1, 3, 64, 64]}, outputs, nodes, constants)


def taggers():
    """Both see BGR. Tags: nothing, red_dress, green_dress, blue_dress."""
    order = [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]
    nodes = [
        node("ReduceMean", "input", "mean", axes=[1, 2], keepdims=0),
        node("MatMul", "mean order", "sum"),
        node("Div", "sum full", "output"),
    ]
    constants = [tensor("order", order), tensor("full", [255.0])]
    shapes = {"input": ["n", 448, 448, 3]}, {"output": ["n", 4]}
    write("wd14", *shapes, nodes, constants)
    nodes = [
        node("ReduceMean", "input", "mean", axes=[2, 3], keepdims=0),
        node("MatMul", "mean order", "logits"),
    ]
    shapes = {"input": ["n", 3, 448, 448]}, {"logits": ["n", 4]}
    write("cl_tagger", *shapes, nodes, [tensor("order", order)])


def unfit():
    write("numbers", {"x": [1, 10]}, {"y": [1, 10]}, [node("Identity", "x", "y")])
    image = [1, 3, 320, 320]
    both = node("Add", "image other", "y")
    write("two-inputs", {"image": image, "other": image}, {"y": image}, [both])
    mean = node("ReduceMean", "x", "classes", axes=[2, 3], keepdims=0)
    write("classes", {"x": image}, {"classes": [1, 3]}, [mean])


masks()
yolov5()
yunet()
taggers()
unfit()

"""An ONNX file, for tests to look around in."""

import numpy as np
import onnx
from onnx import numpy_helper


class Graph:
    """An ONNX graph that can be asked for neighbours."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.nodes = list(self.model.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}

    def of(self, kind):
        return [node for node in self.nodes if node.op_type == kind]

    def maker(self, name):
        """The kind of node that makes a tensor; None for a constant or the graph's input."""
        return self.makers[name].op_type if name in self.makers else None

    def readers(self, name):
        return [node for node in self.nodes if name in node.input]

    def greatest_code(self, conv):
        """The greatest code that a quantised convolution can read, whatever the picture."""
        codes = self.makers[self.makers[conv.input[0]].input[0]]
        if codes.op_type == "Clip":
            return int(self.constants[codes.input[2]])
        assert codes.op_type in ("QuantizeLinear", "MaxPool")
        return 255

    def greatest_pair(self, conv):
        """The greatest sum that two products of a code and a weight of one channel can reach.

        Which two meet depends on the order that an engine reads in: any two may.
        """
        weights = self.constants[self.makers[conv.input[1]].input[0]].astype(int)
        flat = weights.reshape(len(weights), -1)
        sides = [np.sort(side.clip(0), axis=1)[:, -2:].sum(axis=1).max() for side in (flat, -flat)]
        return self.greatest_code(conv) * max(sides)

"""An ONNX file, for tests to look around in."""

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

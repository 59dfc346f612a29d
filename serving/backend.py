"""Triton's backends `onnxruntime` and `openvino`, for the embedded server, which ships neither.

    backend: "onnxruntime"  ->  this file, as a Python-based backend  ->  1/<model file>.onnx
    backend: "openvino"     ->  the same

It reads what the C++ backends of Triton's container read from a model's config.pbtxt: the tensors,
max_batch_size, default_model_filename, and the parameters that name numbers of threads. It runs in
the server's environment (numpy < 2), where Triton provides `triton_python_backend_utils`.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # inputs by name -> outputs in order


class TritonPythonModel:
    """One instance of one model: the name and the methods are Triton's to choose."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model that the config names, on the engine that its backend names.

        Args:
            args: Triton's; `model_config` is the config as JSON.
        """
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        filename = config.get("default_model_filename") or "model.onnx"
        # For a Python-based backend `model_repository` is the model's own folder.
        path = Path(args["model_repository"]) / args["model_version"] / filename
        if not path.is_file():
            raise pb_utils.TritonModelException(
                f"{filename} is missing; `videofer export` writes it"
            )
        self.run_engine = ENGINES[config["backend"]](path, self.outputs, config)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, in order; a bad one gets its own error and spoils no other."""
        responses: list[Any] = [None] * len(requests)
        good: list[tuple[int, list[np.ndarray]]] = []
        for index, request in enumerate(requests):
            try:
                good.append((index, self.read(request)))
            except ValueError as error:
                responses[index] = failure(str(error), pb_utils.TritonError.INVALID_ARG)
        for group in [good] if self.batched and good else [[one] for one in good]:
            answers = self.run([tensors for _, tensors in group])
            for (index, _), answer in zip(group, answers, strict=True):
                responses[index] = answer
        return responses

    def read(self, request: Any) -> list[np.ndarray]:
        """Take a request's tensors.

        Raises:
            ValueError: for values that would poison an answer without an error.
        """
        tensors = []
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            if tensor.shape[0] == 0:
                raise ValueError(f"'{name}' has no frames; expected at least 1")
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                raise ValueError(f"'{name}' has values that are NaN or infinite")
            tensors.append(tensor)
        return tensors

    def run(self, requests: list[list[np.ndarray]]) -> list[Any]:
        """Run requests together, as one batch where there are several, and split the outputs."""
        feeds = {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts)
            for name, parts in zip(self.inputs, zip(*requests, strict=True), strict=True)
        }
        try:
            outputs = self.run_engine(feeds)
        except Exception as error:  # noqa: BLE001  the engines' errors share no narrower base
            # Its text names files of the server: that is for the log, not for the client.
            pb_utils.Logger.log_error(f"the engine failed: {error}")
            reason = "the model failed to run; the server's log says why"
            return [failure(reason, pb_utils.TritonError.INTERNAL) for _ in requests]
        if len(requests) == 1:
            return [success(self.outputs, outputs)]
        ends = np.cumsum([len(tensors[0]) for tensors in requests])[:-1]
        split = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [success(self.outputs, list(parts)) for parts in split]


def onnx_runtime(path: Path, outputs: list[str], config: dict[str, Any]) -> Run:
    """Load a model on ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads(config, "intra_op_thread_count")
    options.inter_op_num_threads = int(parameters(config).get("inter_op_thread_count", 0)) or 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return partial(session.run, outputs)


def open_vino(path: Path, outputs: list[str], config: dict[str, Any]) -> Run:
    """Load a model on OpenVINO."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": num_threads(config, "INFERENCE_NUM_THREADS"),
        "NUM_STREAMS": 1,
        # Else every instance's process would bind itself to the same first cores.
        "ENABLE_CPU_PINNING": False,
        # Else what is not INT8 is computed in bfloat16 where the processor can.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        answers = request.infer(feeds, share_inputs=True)
        return [answers[name] for name in outputs]

    return run


# By the backend's name; each engine is imported where a model asks for it.
ENGINES: Mapping[str, Callable[[Path, list[str], dict[str, Any]], Run]] = {
    "onnxruntime": onnx_runtime,
    "openvino": open_vino,
}


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """Read a config's parameters."""
    return {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}


def num_threads(config: dict[str, Any], parameter: str) -> int:
    """Share the machine's cores between a model's instances, unless a parameter says otherwise."""
    instances = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
    share = max(1, len(os.sched_getaffinity(0)) // instances)
    return int(parameters(config).get(parameter, 0)) or share


def success(names: list[str], outputs: list[np.ndarray]) -> Any:
    """Wrap one request's outputs; Triton reads them as contiguous memory."""
    tensors = zip(names, map(np.ascontiguousarray, outputs), strict=True)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, output) for name, output in tensors])


def failure(message: str, code: int) -> Any:
    """Wrap one request's error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

"""The engine ONNX Runtime, on the decoded dense network as ONNX, in float32 or int8."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime

from pyquant.engines import Arrays


class OnnxRuntimeEngine:
    """An ONNX file in a session of the CPU provider."""

    isa = ""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._names = [declared.name for declared in session.get_inputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for one float32 array per input."""
        outputs: Arrays = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        return outputs


def load(path: str, shapes: Sequence[tuple[int, ...]], threads: int, precision: str) -> OnnxRuntimeEngine:
    """Load an ONNX file, whose sizes `bench` has fixed to `shapes`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return OnnxRuntimeEngine(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))

"""The engine OpenVINO, on the decoded dense network as ONNX, in float32, bf16 or int8."""

from __future__ import annotations

from collections.abc import Sequence

import openvino

from pyquant.engines import Arrays


class OpenVinoEngine:
    """An ONNX file compiled for the CPU."""

    isa = ""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._request = model.create_infer_request()

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for one float32 array per input."""
        results = self._request.infer(list(inputs), share_inputs=True, share_outputs=True)
        return [results[i] for i in range(len(results))]


def load(path: str, shapes: Sequence[tuple[int, ...]], threads: int, precision: str) -> OpenVinoEngine:
    """Compile an ONNX file, whose sizes `bench` has fixed to `shapes`, with the latency hint.

    What the file does not quantize itself runs in bf16 for precision "bf16", else in float32: by itself OpenVINO would
    choose bf16 where the processor has it.
    """
    core = openvino.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "NUM_STREAMS": 1,
    }
    return OpenVinoEngine(core.compile_model(core.read_model(path), "CPU", config))

"""The dense network as an ONNX file in int8, by ONNX Runtime's own static quantization."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from pyquant.engines import Arrays


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands one batch after the other to the quantizer."""

    def __init__(self, names: Sequence[str], batches: Iterable[Arrays]) -> None:
        self._names = names
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else dict(zip(self._names, batch, strict=True))


def write_int8(dense: Path, out: Path, inputs: Sequence[str], batches: Iterable[Arrays]) -> None:
    """Quantize a float32 ONNX file: weights to int8 per channel, activations to uint8 by their range on `batches`.

    The operations stay in float32 between pairs of QuantizeLinear and DequantizeLinear, which the engines fuse.
    """
    logging.getLogger().addFilter(_is_no_advice)
    try:
        quantize_static(
            dense,
            out,
            _Reader(inputs, batches),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Say whether a message is not the advice to fold batch norms first, which is done already."""
    return "pre-processing" not in record.getMessage()

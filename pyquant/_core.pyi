from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def available_isas() -> list[str]: ...
def kernel_names(fast: bool) -> list[str]: ...
def default_threads() -> int: ...
def peak_gmacs(isa: str) -> float: ...
def peak8_gmacs(isa: str) -> float: ...
def encode_codes(packed: NDArray[np.uint8], bits: int, models: int, count: int) -> NDArray[np.uint8]: ...
def decode_codes(coded: NDArray[np.uint8], bits: int, models: int, count: int) -> NDArray[np.uint8]: ...
def sweep_grids(
    slope: NDArray[np.float32],
    gram: NDArray[np.float32],
    codes: NDArray[np.float32],
    step: NDArray[np.float32],
    zero: NDArray[np.float32],
    importance: NDArray[np.float32],
    levels: int,
    prices: NDArray[np.float32] | None,
    kept: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def feedback_grids(
    target: NDArray[np.float32],
    missed: NDArray[np.float32],
    lower: NDArray[np.float32],
    step: NDArray[np.float32],
    zero: NDArray[np.float32],
    importance: NDArray[np.float32],
    levels: int,
    prices: NDArray[np.float32] | None,
    kept: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def sweep_blocks(
    slope: NDArray[np.float32],
    gram: NDArray[np.float32],
    codes: NDArray[np.int64],
    codebooks: NDArray[np.float32],
    beams: int,
    prices: NDArray[np.float32] | None,
    markups: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
def feedback_blocks(
    target: NDArray[np.float32],
    missed: NDArray[np.float32],
    lower: NDArray[np.float32],
    codebooks: NDArray[np.float32],
    beams: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
def resize_picture(
    pixels: NDArray[np.uint8],
    levels: NDArray[np.float32],
    height: int,
    width: int,
    padded_height: int,
    padded_width: int,
) -> NDArray[np.float32]: ...
def paste_masks(
    masks: NDArray[np.float32], boxes: NDArray[np.float32], height: int, width: int
) -> NDArray[np.bool_]: ...
def kernel_tile(isa: str) -> dict[str, int]: ...
def pack_rows(
    runs: NDArray[np.int64],
    step: int,
    inputs: NDArray[np.float32],
    rows: NDArray[np.int64],
    outside: int,
    panel: NDArray[np.float32],
    isa: str,
) -> NDArray[np.float32]: ...
def gemm_tile(
    at: NDArray[np.uint16] | None, codebook: NDArray[np.float32], panel: NDArray[np.float32], isa: str
) -> NDArray[np.float32]: ...
def dot_rows(a: NDArray[np.float32], x: NDArray[np.float32], isa: str) -> NDArray[np.float32]: ...
def winograd_input(tiles: NDArray[np.float32], isa: str) -> NDArray[np.float32]: ...
def winograd_output(products: NDArray[np.float32], isa: str) -> NDArray[np.float32]: ...
def decode_rows(codes: NDArray[np.uint16], codebook: NDArray[np.float32], isa: str) -> NDArray[np.float32]: ...
def table_build(
    codebook: NDArray[np.float32], panel: NDArray[np.float32], pixels: int, isa: str
) -> NDArray[np.float32]: ...
def table_sum(
    at: NDArray[np.uint16],
    tables: NDArray[np.float32],
    sums: NDArray[np.float32] | None,
    pixels: int,
    isa: str,
) -> NDArray[np.float32]: ...
def finish_tile(
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    low: float,
    high: float,
    isa: str,
) -> NDArray[np.float32]: ...
def curve(name: str, values: NDArray[np.float32], isa: str) -> NDArray[np.float32]: ...
def max_row(inputs: NDArray[np.float32], step: int, out: NDArray[np.float32], isa: str) -> NDArray[np.float32]: ...
def gemm_tile8(
    at: NDArray[np.uint16] | None, codebook: NDArray[np.uint32], panel: NDArray[np.uint32], isa: str
) -> NDArray[np.int32]: ...
def dot_rows8(weights: NDArray[np.uint32], inputs: NDArray[np.uint32], isa: str) -> NDArray[np.int32]: ...
def decode_quads(
    codes: NDArray[np.uint16], values: NDArray[np.int16], rows: int, columns: int, isa: str
) -> NDArray[np.uint32]: ...
def turn_quads(inputs: NDArray[np.uint32], pixels: int, isa: str) -> NDArray[np.uint32]: ...
def table_sums8(
    at: NDArray[np.uint16],
    codebook: NDArray[np.uint32],
    panel: NDArray[np.uint32],
    pixels: int,
    shift: int,
    before: NDArray[np.int32] | None,
    isa: str,
) -> NDArray[np.int32]: ...
def finish_tile8(
    inputs: NDArray[np.int32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    residual: NDArray[np.uint32] | None,
    residual_scale: float,
    low: int,
    high: int,
    plain: bool,
    out: NDArray[np.uint32],
    isa: str,
) -> NDArray[np.uint32]: ...
def quantize(inputs: NDArray[np.float32], inverse_scale: float, zero: float, isa: str) -> NDArray[np.uint32]: ...
def dequantize(inputs: NDArray[np.uint32], rows: int, scale: float, zero: float, isa: str) -> NDArray[np.float32]: ...
def max_row8(inputs: NDArray[np.uint32], step: int, out: NDArray[np.uint32], isa: str) -> NDArray[np.uint32]: ...

class Plan:
    @property
    def arena_bytes(self) -> int: ...

class Model:
    def __init__(
        self,
        weights: list[dict[str, Any]],
        nodes: list[dict[str, Any]],
        inputs: list[int],
        outputs: list[int],
        num_values: int,
        fast: bool,
        ranges: NDArray[np.float32] | None,
        threads: int,
        isa: str,
        kernel: str,
        memory_budget: int,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def kept_bytes(self) -> int: ...
    def find_plan(self, inputs: Sequence[tuple[int, ...]]) -> Plan | None: ...
    def make_plan(self, values: Sequence[tuple[int, ...]], choices: dict[str, str]) -> Plan: ...
    def run(self, plan: Plan, inputs: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]: ...
    def profile(self, plan: Plan, inputs: list[NDArray[np.float32]]) -> list[dict[str, Any]]: ...

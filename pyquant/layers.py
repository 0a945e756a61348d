"""The declaration of what each kind of layer holds: its attributes, tensors and their shapes.

Reader, writer, `inspect` and the damaged-file tests all use this one declaration. Dimensions: O outputs · C inputs of a
layer · K centroids · d weights of a block · J blocks per output row · M additive codebooks · D weights of an output · U
codes of a mask · S weights that it keeps · V values of a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyquant.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute of an operation: `length` values of `kind`, numbers at least `minimum` and less than `below`.

    A `length` of 0 is one value by itself, None a list of any length.
    """

    kind: type = int
    length: int | None = 0
    minimum: int = 0
    below: int = 2**31
    choices: tuple[str, ...] = ()
    default: Any = None

    def check(self, value: Any) -> Any:
        """Return `value` in canonical form (lists become tuples); raise ValueError saying what was expected."""
        if self.length != 0:
            if not isinstance(value, (list, tuple)) or not value or self.length not in (None, len(value)):
                raise ValueError(f"expected {self.length or 'a list of'} values, got {value!r}")
            return tuple(self._check_scalar(v) for v in value)
        return self._check_scalar(value)

    def _check_scalar(self, value: Any) -> Any:
        if self.kind is float and type(value) is int and abs(value) < 2**31:
            value = float(value)
        # bool is a subclass of int: an int attribute must not silently take true for 1.
        if not isinstance(value, self.kind) or (self.kind is not bool and isinstance(value, bool)):
            raise ValueError(f"expected {self.kind.__name__}, got {value!r}")
        if isinstance(value, (int, float)) and self.kind is not bool and not self.minimum <= value < self.below:
            below = "2**31" if self.below == 2**31 else self.below
            raise ValueError(f"expected a number of at least {self.minimum} and below {below}, got {value}")
        if self.choices and value not in self.choices:
            raise ValueError(f"expected one of {', '.join(self.choices)}, got {value!r}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a layer or network: the dtypes it may have (safetensors names), its shape in dimensions above."""

    dtypes: tuple[str, ...]
    shape: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """One kind of layer: its inputs (None: one or more), dimensions of its weight, attributes and own tensors."""

    inputs: int | None = 1
    weight_rank: int = 0  # 0: it has no weight
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """One way to store a weight: its attributes, its tensors and the feature name a file that uses it declares."""

    feature: str | None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    choice: str = ""  # the attribute whose value adds the tensors of one of `chosen`
    chosen: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def tensors_of(self, config: Any) -> dict[str, Tensor]:
        """Return the tensors of a weight stored as `config` says."""
        return {**self.tensors, **(self.chosen[getattr(config, self.choice)] if self.choice else {})}


def _pair(minimum: int, default: int) -> Attribute:
    return Attribute(length=2, minimum=minimum, default=(default, default))


def _flag(default: bool) -> Attribute:
    return Attribute(kind=bool, default=default)


_WINDOW = {
    "kernel": Attribute(length=2, minimum=1),
    "stride": _pair(1, 1),
    "padding": _pair(0, 0),
    "ceil_mode": _flag(False),
}
# y = activation-free layer output * scale + bias; a folded batch norm lives here, never in the codebook.
_EPILOGUE = {
    "scale": Tensor(dtypes=("F32",), shape=("O",), required=False),
    "bias": Tensor(dtypes=("F32",), shape=("O",), required=False),
}

_LOWEST = -(2**31)
_BOXES = {  # of an operation that decodes boxes, and lets the best stay that overlap no better one
    "keep": Attribute(minimum=1),  # boxes of an image, at most
    "max_overlap": Attribute(kind=float),  # intersection over union
    "min_score": Attribute(kind=float, minimum=_LOWEST),
    "min_side": Attribute(kind=float),  # pixels
    "box_weights": Attribute(kind=float, length=4),  # what dx, dy, dw and dh are divided by
    "max_log_scale": Attribute(kind=float),  # of dw and dh
}

OPS: dict[str, OpSpec] = {
    "conv2d": OpSpec(
        weight_rank=4,
        attributes={
            "stride": _pair(1, 1),
            "padding": Attribute(length=4, default=(0, 0, 0, 0)),  # top, bottom, left, right
            "dilation": _pair(1, 1),
            "groups": Attribute(minimum=1, default=1),
        },
        tensors=_EPILOGUE,
    ),
    "linear": OpSpec(weight_rank=2, tensors=_EPILOGUE),
    "affine": OpSpec(  # a batch norm that follows no convolution: y = x * scale + bias, per channel
        tensors={"scale": Tensor(dtypes=("F32",), shape=("C",)), "bias": Tensor(dtypes=("F32",), shape=("C",))},
    ),
    "relu": OpSpec(),
    "relu6": OpSpec(),
    "silu": OpSpec(),
    "hardswish": OpSpec(),
    "hardsigmoid": OpSpec(),
    "sigmoid": OpSpec(),
    "add": OpSpec(inputs=2),
    "mul": OpSpec(inputs=2),
    "concat": OpSpec(inputs=None, attributes={"axis": Attribute(minimum=1)}),
    "max_pool2d": OpSpec(attributes={**_WINDOW, "dilation": _pair(1, 1)}),
    "avg_pool2d": OpSpec(
        attributes={
            **_WINDOW,
            "count_include_pad": _flag(True),
            "divisor": Attribute(default=0),  # 0: the number of pixels in the window
        }
    ),
    "adaptive_avg_pool2d": OpSpec(attributes={"output_size": Attribute(length=2, minimum=1)}),
    "flatten": OpSpec(attributes={"start_axis": Attribute(minimum=1, default=1)}),
    "upsample": OpSpec(
        attributes={
            "mode": Attribute(kind=str, choices=("nearest", "bilinear")),
            "size": Attribute(length=2, default=(0, 0)),  # output pixels; 0, 0 where `factor` counts
            "factor": Attribute(kind=float, length=2, default=(0.0, 0.0)),  # 0, 0 where `size` counts
            "align_corners": _flag(False),
        }
    ),
    "upsample_like": OpSpec(  # to the rows and columns of the second input
        inputs=2,
        attributes={
            "mode": Attribute(kind=str, choices=("nearest", "bilinear")),
            "align_corners": _flag(False),
        },
    ),
    # [N, C * fy * fx, H, W] -> [N, C, H * fy, W * fx]: channels become the pixels of a block. A transposed convolution
    # whose kernel is its stride is a 1x1 convolution, an output for each pixel of the kernel, and this.
    "pixel_shuffle": OpSpec(attributes={"factor": Attribute(length=2, minimum=1)}),
    # Detectors. Rows are boxes, as many for each image: [image, or -1 where the row is not used; left, top, right,
    # bottom in pixels], and of detections [score, label] too. `sizes` [N, 2] are heights and widths without padding.
    "proposals": OpSpec(  # images, sizes, objectness [N, A, h, w] of each level, numbers [N, A * 4, h, w] of each
        inputs=None,
        attributes={
            **_BOXES,
            "best": Attribute(minimum=1),  # boxes of a level that are decoded
            "anchors": Attribute(kind=float, length=None, minimum=_LOWEST),  # levels * A * 4, around the origin
        },
    ),
    "roi_align": OpSpec(  # images, rows, features of each level [N, C, h, w]
        inputs=None,
        attributes={
            "output_size": Attribute(length=2, minimum=1, below=2**12),
            "samples": Attribute(minimum=1, below=2**8),  # along each axis of an output pixel
            "canonical_side": Attribute(minimum=1, default=224),  # a box of so many pixels ..
            "canonical_level": Attribute(default=4),  # .. is taken from the level that was halved so many times
        },
    ),
    "anchor_detections": OpSpec(  # images, sizes, logits [N, A * classes, h, w] of each level, numbers as above
        inputs=None,
        attributes={
            **_BOXES,
            "best": Attribute(minimum=1),  # classes of anchors of a level that are decoded
            "anchors": Attribute(kind=float, length=None, minimum=_LOWEST),
        },
    ),
    "detections": OpSpec(inputs=4, attributes=_BOXES),  # sizes, rows, logits [R, classes], numbers [R, classes * 4]
    "select_masks": OpSpec(inputs=2),  # logits [R, classes, h, w], detections [R, 7]
}

CODECS: dict[str, CodecSpec] = {
    "dense": CodecSpec(
        feature=None,
        tensors={"weight": Tensor(dtypes=("F32", "F16"), shape=("*",))},  # "*": the shape of the weight itself
    ),
    "product": CodecSpec(
        feature="product",
        attributes={
            "block": Attribute(length=3, minimum=1),
            "centroids": Attribute(minimum=2),
            "codebooks": Attribute(minimum=1, default=1),
            "codebook_dtype": Attribute(kind=str, choices=("float", "int8"), default="float"),
            "rate": Attribute(kind=float, default=0.0),
        },
        tensors={
            # M * O * J codes of ceil(log2 K) bits, least significant bit first; the last byte is filled with zero bits.
            "codes": Tensor(dtypes=("U8",), shape=("packed(M*O*J, bits)",)),
        },
        choice="codebook_dtype",
        chosen={
            "float": {"codebook": Tensor(dtypes=("F16", "F32"), shape=("M", "K", "d"))},
            "int8": {
                "codebook": Tensor(dtypes=("I8",), shape=("M", "K", "d")),
                "codebook_scale": Tensor(dtypes=("F32",), shape=("M",)),  # of each codebook
            },
        },
    ),
    "scalar": CodecSpec(
        feature="scalar",
        attributes={"bits": Attribute(minimum=2), "rate": Attribute(kind=float, default=0.0)},
        tensors={  # a weight of output o is step[o] * (code - zero[o] / 2)
            "codes": Tensor(dtypes=("U8",), shape=("packed(O*D, bits)",)),
            "step": Tensor(dtypes=("F32",), shape=("O",)),
            "zero": Tensor(dtypes=("U8",), shape=("O",)),
        },
    ),
    "sparse": CodecSpec(
        feature="sparse",
        attributes={
            "kept": Attribute(kind=float),
            "bits": Attribute(minimum=2, default=8),
            "run": Attribute(minimum=1, default=1),
            "of": Attribute(default=0),
        },
        tensors={
            "mask": Tensor(dtypes=("U8",), shape=("packed(U, mask_bits)",)),
            "codes": Tensor(dtypes=("U8",), shape=("packed(S, bits)",)),  # of the weights that are kept
            "step": Tensor(dtypes=("F32",), shape=("O",)),
            "zero": Tensor(dtypes=("U8",), shape=("O",)),
        },
    ),
}

# Tensors of a whole network. Row v of the ranges belongs to value v of `Graph.values()`: the lowest and the highest
# number that its 8-bit form can stand for. Level q of 0..255 means scale * (q - zero), where scale = (high - low) / 255
# and zero = round(-low / scale).
ACTIVATION_RANGES = "activation_ranges"
RANGE_WIDTHS = (2.0**-60, 2.0**60)  # of low <= 0 <= high: scales and their quotients stay numbers of fp32
NETWORK_TENSORS: dict[str, Tensor] = {
    ACTIVATION_RANGES: Tensor(dtypes=("F32",), shape=("V", "2"), required=False),
}

ENTROPY_CODED = "rans"  # the feature of a file that stores tensors entropy-coded
FEATURES: frozenset[str] = frozenset({ENTROPY_CODED, *(spec.feature for spec in CODECS.values() if spec.feature)})


def canonical_attributes(spec: Mapping[str, Attribute], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return all attributes of `spec`, defaults filled in.

    Raises:
        FormatError: naming `what`, and listing every unknown, missing or unusable attribute at once.
    """
    faults = [f"unknown attribute '{key}'" for key in given if key not in spec]
    result = {}
    for key, attribute in spec.items():
        value = given.get(key, attribute.default)
        if value is None:
            faults.append(f"missing attribute '{key}'")
            continue
        try:
            result[key] = attribute.check(value)
        except ValueError as error:
            faults.append(f"attribute '{key}': {error}")
    if faults:
        raise FormatError(f"{what}: {'; '.join(faults)}")
    return result

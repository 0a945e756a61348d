"""How each PyTorch operation becomes layers of ours: one function each, and the registry of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyquant.capture.calls import Call, Constant, Layers, Symbolic, Unsupported, Value, same_sizes
from pyquant.graph import StateNames

Translator = Callable[[Layers, Call], Value]


def _channels(value: Value) -> int:
    if len(value.shape) < 2 or not isinstance(value.shape[1], int):
        raise Unsupported("on a value without a fixed number of channels")
    return value.shape[1]


def _conv2d(layers: Layers, call: Call) -> Value:
    x, weight, bias = call.value("input"), call.parameter("weight"), call.constant("bias")
    if len(x.shape) != 4:
        raise Unsupported(f"on {len(x.shape)} dimensions; expected [N, C, H, W]")
    dilation, kernel = call.pair("dilation"), weight.tensor.shape[2:]
    padding = call.arguments["padding"]
    if padding == "same":
        both = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        (top, bottom), (left, right) = [(total // 2, total - total // 2) for total in both]
    else:
        top, left = bottom, right = (0, 0) if padding == "valid" else call.pair("padding")
    attributes = {
        "stride": call.pair("stride"),
        "padding": (top, bottom, left, right),
        "dilation": dilation,
        "groups": call.arguments["groups"],
    }
    return _weighted(layers, "conv2d", x, attributes, weight, bias)


def _conv_transpose2d(layers: Layers, call: Call) -> Value:
    """Add a 1x1 convolution with an output for each pixel of the kernel, and the shuffle that lays these out."""
    x, weight, bias = _image(call.value("input")), call.parameter("weight"), call.constant("bias")
    kernel = tuple(weight.tensor.shape[2:])
    # Then no two windows overlap, and none is cut.
    alone = call.pair("stride") == kernel and call.pair("padding") == call.pair("output_padding") == (0, 0)
    if not alone or call.pair("dilation") != (1, 1) or call.arguments["groups"] != 1:
        raise Unsupported("whose stride is not its kernel, or with padding, dilation or groups")
    own = {} if bias is None else {"bias": bias.tensor.repeat_interleave(kernel[0] * kernel[1])}
    state = StateNames(weight=weight.source, bias="" if bias is None else bias.source, transposed=True)
    pixels = layers.add("conv2d", [x], weight=weight, own=own, state=state)
    return layers.add("pixel_shuffle", [pixels], {"factor": kernel})


def _pixel_shuffle(layers: Layers, call: Call) -> Value:
    factor = call.arguments["upscale_factor"]
    return layers.add("pixel_shuffle", [_image(call.value("self"))], {"factor": (factor, factor)})


def _linear(layers: Layers, call: Call) -> Value:
    x, weight, bias = call.value("input"), call.parameter("weight"), call.constant("bias")
    if len(x.shape) != 2:
        raise Unsupported(f"on {len(x.shape)} dimensions; expected [N, C]")
    return _weighted(layers, "linear", x, {}, weight, bias)


def _weighted(
    layers: Layers, op: str, x: Value, attributes: dict[str, Any], weight: Constant, bias: Constant | None
) -> Value:
    own = {} if bias is None else {"bias": bias.tensor}
    state = StateNames(weight=weight.source, bias="" if bias is None else bias.source)
    return layers.add(op, [x], attributes, weight=weight, own=own, state=state)


def _batch_norm(layers: Layers, call: Call) -> Value:
    x = call.value("input")
    if call.arguments.get("training") or call.arguments["running_mean"] is None:
        raise Unsupported("that uses the statistics of the batch, not running ones")
    mean, variance = call.parameter("running_mean"), call.constant("running_var")
    gamma, beta = call.constant("weight"), call.constant("bias")
    assert variance is not None
    channels, eps = _channels(x), float(call.arguments["eps"])
    # In float64: the folded values are rounded once.
    scale = torch.rsqrt(variance.tensor.double() + eps)
    scale = scale if gamma is None else scale * gamma.tensor.double()
    bias = -mean.tensor.double() * scale
    bias = bias if beta is None else bias + beta.tensor.double()
    state = StateNames(
        norm=mean.source.rpartition(".")[0] or mean.source, norm_affine=gamma is not None and beta is not None, eps=eps
    )
    own = {"scale": scale.float().expand(channels), "bias": bias.float().expand(channels)}
    return layers.add("affine", [x], own=own, state=state)


def _activation(op: str) -> Translator:
    def translate(layers: Layers, call: Call) -> Value:
        return layers.add(op, [call.value("self")])

    return translate


def _clamp(layers: Layers, call: Call) -> Value:
    low = call.arguments.get("min_val", call.arguments.get("min"))
    high = call.arguments.get("max_val", call.arguments.get("max"))
    if low != 0 or high not in (6, None):
        raise Unsupported(f"to [{low}, {high}]; expected [0, 6] or [0, none]")
    return layers.add("relu" if high is None else "relu6", [call.value("self")])


def _per_channel(x: Value, number: Any) -> torch.Tensor:
    """Return a number, a tensor `[C]` or a constant that broadcasts along all but the channels, as a float64 `[C]`."""
    channels = _channels(x)
    if isinstance(number, torch.Tensor):
        return number.double()
    if isinstance(number, (int, float)):
        return torch.full((channels,), float(number), dtype=torch.float64)
    if not isinstance(number, Constant):
        raise Unsupported("with a number that the network computes", symbolic=isinstance(number, Symbolic))
    shape = (1,) * (len(x.shape) - number.tensor.dim()) + tuple(number.tensor.shape)
    if len(shape) != len(x.shape) or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        raise Unsupported(f"with a constant of shape {list(number.tensor.shape)}; expected one number per channel")
    return number.tensor.double().reshape(-1).expand(channels)


def _affine(layers: Layers, x: Value, scale: Any = 1.0, bias: Any = 0.0) -> Value:
    own = {"scale": _per_channel(x, scale).float(), "bias": _per_channel(x, bias).float()}
    return layers.add("affine", [x], own=own)


def _same_rank(a: Value, b: Value) -> list[Value]:
    if len(a.shape) != len(b.shape):
        raise Unsupported(f"of values with {len(a.shape)} and {len(b.shape)} dimensions")
    return [a, b]


def _sum(layers: Layers, a: Any, b: Any, sign_a: float, sign_b: float) -> Value:
    """Add the layers for `a * sign_a + b * sign_b`; at least one of them is a value."""
    if not isinstance(a, Value):
        a, b, sign_a, sign_b = b, a, sign_b, sign_a
    if not isinstance(b, Value):
        return _affine(layers, a, sign_a, _per_channel(a, b) * sign_b)
    a, b = (x if sign == 1 else _affine(layers, x, sign) for x, sign in ((a, sign_a), (b, sign_b)))
    return layers.add("add", _same_rank(a, b))


def _alpha(call: Call) -> float:
    alpha = call.arguments.get("alpha", 1)
    if not isinstance(alpha, (int, float)):
        raise Unsupported("with an alpha that the network computes")
    return float(alpha)


def _add(layers: Layers, call: Call) -> Value:
    return _sum(layers, call.arguments["self"], call.arguments["other"], 1, _alpha(call))


def _sub(layers: Layers, call: Call) -> Value:
    return _sum(layers, call.arguments["self"], call.arguments["other"], 1, -_alpha(call))


def _rsub(layers: Layers, call: Call) -> Value:
    return _sum(layers, call.arguments["self"], call.arguments["other"], -_alpha(call), 1)


def _neg(layers: Layers, call: Call) -> Value:
    return _affine(layers, call.value("self"), -1.0)


def _mul(layers: Layers, call: Call) -> Value:
    a, b = call.arguments["self"], call.arguments["other"]
    if isinstance(a, Value) and isinstance(b, Value):
        return layers.add("mul", _same_rank(a, b))
    return _affine(layers, a, b) if isinstance(a, Value) else _affine(layers, b, a)


def _div(layers: Layers, call: Call) -> Value:
    x, divisor = call.value("self"), call.arguments["other"]
    if call.arguments.get("rounding_mode") is not None:
        raise Unsupported("with rounding")
    if isinstance(divisor, Value):
        raise Unsupported("by a value that the network computes")
    return _affine(layers, x, _per_channel(x, divisor).reciprocal())


def _concat(layers: Layers, call: Call) -> Value:
    values = call.arguments["tensors"]
    if not all(isinstance(value, Value) for value in values):
        raise Unsupported("with a constant")
    axis = call.arguments["dim"] % len(call.shape)
    if axis == 0:
        raise Unsupported("along the batch")
    return layers.add("concat", values, {"axis": axis})


def _window(call: Call) -> dict[str, Any]:
    kernel = call.pair("kernel_size")
    return {
        "kernel": kernel,
        "stride": call.pair("stride") if call.arguments["stride"] else kernel,
        "padding": call.pair("padding"),
        "ceil_mode": call.arguments["ceil_mode"],
    }


def _max_pool2d(layers: Layers, call: Call) -> Value:
    x = _image(call.value("self"))
    return layers.add("max_pool2d", [x], {**_window(call), "dilation": call.pair("dilation")})


def _avg_pool2d(layers: Layers, call: Call) -> Value:
    x = _image(call.value("self"))
    kernel = [size.size if isinstance(size, Symbolic) else size for size in call.arguments["kernel_size"]]
    if same_sizes(kernel, x.shape[2:]) and call.pair("padding") == (0, 0) and not call.arguments["divisor_override"]:
        return layers.add("adaptive_avg_pool2d", [x], {"output_size": (1, 1)})
    attributes = {
        **_window(call),
        "count_include_pad": call.arguments["count_include_pad"],
        "divisor": call.arguments["divisor_override"] or 0,
    }
    return layers.add("avg_pool2d", [x], attributes)


def _adaptive_avg_pool2d(layers: Layers, call: Call) -> Value:
    x = _image(call.value("self"))
    return layers.add("adaptive_avg_pool2d", [x], {"output_size": call.pair("output_size")})


def _mean(layers: Layers, call: Call) -> Value:
    x = call.value("self")
    axes = sorted(axis % len(x.shape) for axis in call.arguments.get("dim") or range(len(x.shape)))
    if len(x.shape) != 4 or axes != [2, 3]:
        raise Unsupported(f"over the dimensions {axes} of {len(x.shape)}; expected rows and columns, [2, 3] of 4")
    pooled = layers.add("adaptive_avg_pool2d", [x], {"output_size": (1, 1)})
    return pooled if call.arguments["keepdim"] else layers.add("flatten", [pooled], {"start_axis": 1})


def _image(x: Value) -> Value:
    if len(x.shape) != 4:
        raise Unsupported(f"on {len(x.shape)} dimensions; expected [N, C, H, W]")
    return x


def _reshape(layers: Layers, call: Call) -> Value:
    x, shape = call.value("self"), call.shape
    if same_sizes(x.shape, shape):
        return x
    start = len(shape) - 1
    # As many elements as before, and all dimensions but the last as before: the last is the product of the rest.
    if 0 < start < len(x.shape) and same_sizes(x.shape[:start], shape[:start]):
        return layers.add("flatten", [x], {"start_axis": start})
    # Sizes that happen to be equal where they are fixed may make it one.
    symbolic = start < len(x.shape) - 1 and any(not isinstance(size, int) for size in (*x.shape, *shape))
    raise Unsupported(f"from {_sizes(x.shape)} to {_sizes(shape)}, which is not a flatten", symbolic=symbolic)


def _sizes(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def _identity(layers: Layers, call: Call) -> Value:
    return call.value("self")


def _dropout(layers: Layers, call: Call) -> Value:
    if call.arguments["train"]:
        raise Unsupported("that stays on in eval mode")
    return call.value("input" if "input" in call.arguments else "self")


def _upsample(mode: str) -> Translator:
    def translate(layers: Layers, call: Call) -> Value:
        x = _image(call.value("input" if "input" in call.arguments else "self"))
        attributes: dict[str, Any] = {"mode": mode, "align_corners": bool(call.arguments.get("align_corners", False))}
        factors = call.arguments.get("scale_factors")
        if call.arguments.get("scales_h") is not None:  # the form without `.vec`
            factors = [call.arguments["scales_h"], call.arguments["scales_w"]]
        if factors is None:
            rows, columns = call.shape[2:]
            fixed = isinstance(rows, int) and isinstance(columns, int)
            if not fixed and (like := layers.of_size(rows, columns)) is not None:
                return layers.add("upsample_like", [x, like], attributes)
            attributes["size"] = call.pair("output_size")
        else:
            attributes["factor"] = tuple(float(factor) for factor in factors)
            if not all(math.isfinite(factor) and factor > 0 for factor in attributes["factor"]):
                raise Unsupported(f"by a factor of {factors}")
        return layers.add("upsample", [x], attributes)

    return translate


# By the name of the ATen operation, without its overload and the `_` of its form in place.
TRANSLATORS: dict[str, Translator] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "pixel_shuffle": _pixel_shuffle,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "relu": _activation("relu"),
    "relu6": _activation("relu6"),
    "silu": _activation("silu"),
    "hardswish": _activation("hardswish"),
    "hardsigmoid": _activation("hardsigmoid"),
    "sigmoid": _activation("sigmoid"),
    "hardtanh": _clamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "cat": _concat,
    "concat": _concat,
    "concatenate": _concat,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "flatten": _reshape,
    "view": _reshape,
    "_unsafe_view": _reshape,
    "reshape": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "feature_alpha_dropout": _dropout,
    "native_dropout": _dropout,
    "clone": _identity,
    "contiguous": _identity,
    "alias": _identity,
    "detach": _identity,
    "lift_fresh_copy": _identity,
    "to": _identity,
    "_to_copy": _identity,
    "upsample_nearest2d": _upsample("nearest"),
    "upsample_bilinear2d": _upsample("bilinear"),
}

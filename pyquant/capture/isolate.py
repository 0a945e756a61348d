"""An independent copy of the user's module, and the global state that tracing must give back as it was."""

from __future__ import annotations

import copy
import random
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pyquant.errors import CaptureError


def isolated(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in eval mode, in float32 on the CPU, without hooks; parameters share their memory.

    Only the structure is copied: a parameter that is already float32 on the CPU keeps its storage, buffers are cloned.

    Raises:
        CaptureError: the module cannot be copied, or its parameters have no values yet.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module cannot be captured; give the nn.Module that it was made from")
    # What deepcopy finds in `memo` under an object's id, it takes instead of a copy of that object.
    memo: dict[int, Any] = {}
    for path, part in module.named_modules():
        _refuse_computed_weights(path, part)
        for name, attribute in vars(part).items():
            if "hook" in name and isinstance(attribute, dict):
                memo[id(attribute)] = OrderedDict()
            elif isinstance(attribute, torch.Tensor):
                memo[id(attribute)] = _converted(attribute, f"{path}.{name}").clone()
        for name, parameter in part.named_parameters(path, recurse=False):
            if id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(_converted(parameter, name), requires_grad=False)
        for name, buffer in part.named_buffers(path, recurse=False):
            if id(buffer) not in memo:
                memo[id(buffer)] = _converted(buffer, name).clone()
    try:
        return copy.deepcopy(module, memo).eval()
    except Exception as error:  # whatever a user's own __deepcopy__ or train() raises
        raise CaptureError(f"the module cannot be copied, {type(error).__name__}: {error}") from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give back, on leaving, the random state of Python, NumPy and PyTorch and the gradient mode; hide warnings."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if cuda else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export, about its own insides
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _converted(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return `tensor` detached on the CPU, in float32 if it holds real numbers; its memory where nothing changes."""
    if is_lazy(tensor):
        raise CaptureError(f"parameter '{name}' is not initialised; run the module once on an input first")
    if tensor.is_meta:
        raise CaptureError(f"tensor '{name}' is on the meta device and has no values; load the weights first")
    if tensor.is_complex() or tensor.is_quantized:
        raise CaptureError(f"tensor '{name}' is {tensor.dtype}; expected real floating-point weights")
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)


def _refuse_computed_weights(path: str, part: nn.Module) -> None:
    """Raise where a hook or parametrization computes the weight, which the copy would have as a stale value."""
    hooks = part._forward_pre_hooks.values()
    if any(type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm") for hook in hooks):
        raise CaptureError(
            f"layer '{path}' computes its weight in a hook; "
            "call torch.nn.utils.remove_weight_norm or remove_spectral_norm on it first"
        )
    if nn.utils.parametrize.is_parametrized(part):
        raise CaptureError(
            f"layer '{path}' computes its weight from other parameters; "
            "call torch.nn.utils.parametrize.remove_parametrizations on it first"
        )

"""An independent copy of the user's module, and the global state that tracing must give back as it was."""

from __future__ import annotations

import copy
import logging
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

# The attributes in which a module keeps its hooks.
_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict))


def isolated(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in eval mode, in float32 on the CPU, without hooks; parameters share their memory.

    Only the structure is copied: a parameter that is already float32 on the CPU keeps its storage, buffers are cloned.

    Raises:
        CaptureError: the module cannot be copied, or its parameters have no values yet.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module cannot be captured; give the nn.Module that it was made from")
    if hasattr(module, "_orig_mod"):
        raise CaptureError("a compiled module cannot be captured; give the nn.Module that torch.compile was called on")
    # What deepcopy finds in `memo` under an object's id, it takes instead of a copy of that object.
    memo: dict[int, Any] = {}
    for path, part in module.named_modules():
        for name, attribute in vars(part).items():
            if name in _HOOKS:
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
        return _thawed(copy.deepcopy(module, memo).eval())
    except Exception as error:  # whatever a user's own __deepcopy__ or train() raises
        raise CaptureError(f"the module cannot be copied, {type(error).__name__}: {error}") from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give back, on leaving, the random state of Python, NumPy and PyTorch; torch.export's own warnings are hidden."""
    python, numpy, silenced = random.getstate(), np.random.get_state(), logging.root.manager.disable
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if cuda else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(max(logging.ERROR, silenced))
            yield
    finally:
        logging.disable(silenced)
        random.setstate(python)
        np.random.set_state(numpy)


def _thawed(module: nn.Module) -> nn.Module:
    """Return `module` with a batch norm in place of each of torchvision's frozen ones, which are arithmetic."""
    for parent in list(module.modules()):
        part: Any
        for name, part in parent.named_children():
            if type(part).__name__ == "FrozenBatchNorm2d":
                norm = nn.BatchNorm2d(len(part.weight), eps=part.eps).eval()
                norm.load_state_dict(part.state_dict(), strict=False)  # a frozen one counts no batches
                setattr(parent, name, norm.requires_grad_(False))
    return module


def _converted(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return `tensor` detached on the CPU, in float32 if it holds real numbers; its memory where nothing changes."""
    if is_lazy(tensor):
        raise CaptureError(f"parameter '{name}' is not initialised; run the module once on an input first")
    if tensor.is_meta:
        raise CaptureError(f"tensor '{name}' is on the meta device and has no values; load the weights first")
    if tensor.is_complex() or tensor.is_quantized:
        raise CaptureError(f"tensor '{name}' is {tensor.dtype}; expected real floating-point weights")
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)

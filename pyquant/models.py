"""Finds and builds the PyTorch network that the user named."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant.errors import ConfigError, InputError, MissingDependencyError
from pyquant.storage import reason

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_NAMES_IN_MESSAGE = 5


def build_network(name: str, *, weights: str | Path | None = None, num_classes: int | None = None) -> nn.Module:
    """Return the network called `name`, in evaluation mode.

    Args:
        name: a torchvision classification network or detector such as "resnet18" and "maskrcnn_resnet50_fpn", or
            `package.module:callable`, a callable that returns a network; the current directory is searched for the
            package too.
        weights: a .safetensors file, or a .pth file that holds weights alone; None: as they are built.
        num_classes: passed to torchvision, or to the callable, where it is given.

    Raises:
        ConfigError: the name means no network, or building it failed.
        InputError: the weights cannot be read, or are not this network's.
        MissingDependencyError: torch, or for its names torchvision, is not installed.
    """
    if weights is not None:
        weights = Path(weights)
        if not weights.is_file():
            raise InputError(f"{weights}: {'is not a file' if weights.exists() else 'no such file'}")
    try:
        from torch import nn
    except ImportError as error:
        raise MissingDependencyError(
            "building a PyTorch network needs torch: pip install 'pyquant-codec[train]'"
        ) from error

    options = {} if num_classes is None else {"num_classes": num_classes}
    build = _callable(name) if ":" in name else _from_torchvision(name)
    try:
        module = build(**options)
    except Exception as error:
        raise ConfigError(f"{name}: building the network failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{name}: expected a torch.nn.Module, got {type(module).__name__}")
    if weights is not None:
        _load(module, read_weights(weights), f"{weights.name}, for {name}")
    return module.eval()


def is_torchvision_name(name: str) -> bool:
    """Whether `name` means one of torchvision's networks, which are built with random weights."""
    return ":" not in name


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a .pth file that holds weights alone; fp16 becomes fp32.

    A .pth file may hold the state dict itself or, as training scripts save it, under the key "model" or "state_dict".

    Raises:
        InputError: the file is damaged, holds something else than weights, or runs code when it is loaded.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Any = load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path.name}: not a safetensors file: {error}") from error
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path.name}: damaged, or holds objects other than weights, which could run code and are not loaded; "
                f"save the network's state_dict() alone, best as .safetensors"
            ) from error
        except OSError as error:
            raise InputError(f"{path.name}: cannot be read: {reason(error)}") from error
        except Exception as error:  # a damaged pickle can end in almost any exception
            raise InputError(
                f"{path.name}: not a file of PyTorch weights, or damaged ({type(error).__name__}: {error})"
            ) from error
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path.name}: expected a state dict (names and tensors), got {type(state).__name__}")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _callable(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the user's own code runs here
        raise ConfigError(f"{name}: importing '{module_name}' failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"{name}: '{module_name}' has no callable '{attribute}'")
    return found  # type: ignore[no-any-return]


def _from_torchvision(name: str) -> Callable[..., Any]:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingDependencyError(
            f"'{name}' names a torchvision network: pip install 'pyquant-codec[vision]', "
            f"or name a callable of your own as package.module:callable"
        ) from error
    except RuntimeError as error:  # how torchvision reports that it was built for another torch
        raise MissingDependencyError(f"torchvision does not work with the installed torch: {error}") from error
    if name in models.list_models(module=models.detection):
        return lambda **options: models.get_model(name, weights=None, weights_backbone=None, **options)
    if name not in models.list_models(module=models):
        known = ", ".join(n for n in models.list_models(module=models) if n.startswith(("resnet", "vgg")))
        raise ConfigError(f"unknown network '{name}'; torchvision has {known}, ..; or give package.module:callable")
    return lambda **options: models.get_model(name, weights=None, **options)


def _load(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    own = module.state_dict()
    wrong_shape = {key for key in state if key in own and own[key].shape != state[key].shape}
    fitting = {key: value for key, value in state.items() if key not in wrong_shape}
    missing, unexpected = module.load_state_dict(fitting, strict=False)
    missing = [key for key in missing if key not in wrong_shape]
    faults = []
    if missing:
        faults.append(f"missing {_some(missing)}")
    if unexpected:
        faults.append(f"unexpected {_some(unexpected)}")
    if wrong_shape:
        shapes = [
            f"{key} ({list(own[key].shape)} wanted, {list(state[key].shape)} found)" for key in sorted(wrong_shape)
        ]
        faults.append(f"wrong shape of {_some(shapes)} (another number of classes? give --num-classes)")
    if faults:
        raise InputError(f"{what}: these are not the network's weights: {'; '.join(faults)}")


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMES_IN_MESSAGE
    return ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")

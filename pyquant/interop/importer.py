"""Turns a published compressed checkpoint into a `.pqmodel` that has been compared with PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyquant import console
from pyquant.classes import ClassName
from pyquant.errors import FormatError, InputError
from pyquant.export.state import state_dict
from pyquant.extras import missing_dependency
from pyquant.file import ModelFile, check_classes, write_model
from pyquant.graph import Network
from pyquant.interop.abgd import is_abgd, read_abgd
from pyquant.interop.checkpoint import Checkpoint, network_from_checkpoint
from pyquant.interop.pqf import is_pqf, read_pqf
from pyquant.interop.resnet import resnet_config, resnet_graph
from pyquant.preprocessing import Preprocessing
from pyquant.report import Report
from pyquant.storage import AnyPath, check_writable, checked_before_use, reason

if TYPE_CHECKING:
    from torch import nn

CLASSIFIER = "fc"
DENSE_REASON = "dense in the checkpoint"
DEFAULT_INPUT = (3, 224, 224)
SELF_CHECK_BATCH = 2

LAYOUTS: dict[str, tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], Checkpoint]]] = {
    "abgd": (is_abgd, read_abgd),
    "pqf": (is_pqf, read_pqf),
}


def import_checkpoint(
    checkpoint: AnyPath,
    *,
    arch: str,
    out: AnyPath,
    classes: Sequence[ClassName] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Report:
    """Write the ResNet in `checkpoint` as a `.pqmodel`, codes and codebooks as they are, and compare it with PyTorch.

    The comparison is with the decoded network, and with torchvision's own module where torchvision is installed.

    Args:
        checkpoint: a file in the layout of the ABGD or the PQF authors; its content tells which.
        arch: torchvision's name of the architecture, one of `interop.resnet.RESNETS`.
        out: the file to write.
        classes: the classes in order; None: the file has no names.
        preprocessing: how a picture becomes an input; None: ImageNet's, 224x224 pixels out of a short side of 256.

    Raises:
        ConfigError: no such architecture.
        FormatError: the checkpoint is in neither layout, or not one of this architecture; all faults are listed.
        InputError: a file cannot be read or written, or the number of classes differs from the checkpoint's.
        MissingDependencyError: torch is not installed.
        SelfCheckError: the file does not compute what PyTorch computes; no file is left.
    """
    config = resnet_config(arch)
    check_writable(out, inputs=(checkpoint,))
    preprocessing = preprocessing or Preprocessing.default_for(DEFAULT_INPUT)
    name = os.fspath(checkpoint)
    try:
        read = _read_entries(_load(checkpoint))
        graph = resnet_graph(config, read.num_classes(CLASSIFIER), preprocessing.crop)
        network = network_from_checkpoint(read, graph)
    except FormatError as error:
        raise FormatError(f"{name}: cannot be imported as {arch}: {error}") from error
    check_classes(network.graph, classes or ())
    dense = {node.name: DENSE_REASON for node, weight in network.graph.weighted() if weight.codec_name == "dense"}
    model = ModelFile(
        network=network,
        preprocessing=preprocessing,
        classes=tuple(classes or ()),
        provenance={"source": "import", "layout": read.layout, "arch": arch, "dense": dense},
    )
    with checked_before_use(out) as path:
        write_model(path, model)
        difference = _self_check(path, network, arch)
    return Report.of(out, model, max_relative_error=difference)


def _load(checkpoint: AnyPath) -> Mapping[str, Any]:
    """Return the entries of a checkpoint as arrays and plain values; nothing in it is executed."""
    if not os.path.isfile(checkpoint):
        raise InputError(f"{os.fspath(checkpoint)}: no such file")
    try:
        import torch
    except ImportError as error:
        raise missing_dependency(error) or error from error

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, torch.Tensor):
            # NumPy has no bfloat16; float32 holds each of its numbers.
            return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        return value

    try:
        entries = plain(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except OSError as error:
        raise InputError(f"{os.fspath(checkpoint)}: cannot be read: {reason(error)}") from error
    except Exception as error:  # a damaged pickle can end in almost any exception
        # PyTorch's own message would advise to run whatever code is in the file.
        raise FormatError(f"not a PyTorch checkpoint of weights alone, or damaged ({type(error).__name__})") from error
    if not isinstance(entries, Mapping):
        raise FormatError(f"expected a dict of entries, got {type(entries).__name__}")
    return {str(key): value for key, value in entries.items()}


def _read_entries(entries: Mapping[str, Any]) -> Checkpoint:
    for recognises, read in LAYOUTS.values():
        if recognises(entries):
            return read(entries)
    found = ", ".join(list(entries)[:5]) or "nothing"
    raise FormatError(
        f"in neither known layout: ABGD has dicts with 'centroids' and 'assignments', PQF has '<layer>.codes_matrix' "
        f"and '<layer>.codebook'; found: {found}"
    )


def _self_check(path: AnyPath, network: Network, arch: str) -> float:
    """Return the largest difference of the file from PyTorch, relative to the largest output."""
    from pyquant.selfcheck import check_against_decoded, check_against_module

    shape = (SELF_CHECK_BATCH, *network.graph.inputs[0].default)
    batch = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    difference = check_against_decoded(path, batch)
    module = _torchvision_module(network, arch)
    if module is None:
        console.note("not compared with torchvision's module: torchvision is not installed")
        return difference
    return max(difference, check_against_module(path, module, batch))


def _torchvision_module(network: Network, arch: str) -> nn.Module | None:
    """Return torchvision's module with the decoded weights, or None where torchvision cannot be imported."""
    import torch

    try:
        from torchvision.models import get_model
    except (ImportError, RuntimeError):  # RuntimeError: it was built for another version of torch
        return None
    state = {key: torch.from_numpy(np.array(value)) for key, value in state_dict(network).items()}
    with torch.device("meta"):  # without initial weights, which would take time and random numbers
        module: nn.Module = get_model(arch, weights=None, num_classes=len(state[f"{CLASSIFIER}.weight"]))
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()

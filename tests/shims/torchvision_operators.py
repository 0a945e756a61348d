"""Lets torchvision be imported over a PyTorch that it was not built for, as where PyTorch is a CPU build.

torchvision registers metadata for its compiled operators while it is imported, so without them the import fails. Where
its library cannot be loaded, the operators are declared here, without an implementation: the classification networks
that the tests take from torchvision call none of them.
"""

import importlib.machinery
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, and finds no module itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_if_needed()
        return None


def install() -> None:
    """Act when torchvision is imported, if it ever is; torch is not imported before."""
    if "torchvision" not in sys.modules and not any(type(f).__name__ == "_BeforeTorchvision" for f in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare_if_needed() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    folder = Path(spec.origin).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (library := folder / f"_C{suffix}").exists():
            try:
                torch.ops.load_library(library)
                return
            except OSError:  # built for another torch
                break
    _kept.append(torch.library.Library("torchvision", "FRAGMENT"))
    for operator in OPERATORS:
        _kept[-1].define(operator)


_kept = []  # a torch.library.Library undefines its operators when it is collected

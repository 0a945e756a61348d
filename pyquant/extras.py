"""Which extra of the distribution brings each optional library."""

from __future__ import annotations

from pyquant.errors import MissingDependencyError

EXTRA_OF: dict[str, str] = {
    "torch": "train",
    "faiss": "train",
    "torchvision": "vision",
    "onnx": "bench",
    "onnxruntime": "bench",
    "openvino": "bench",
    "psutil": "bench",
    "matplotlib": "report",
    "faster_coco_eval": "coco",
    "pycocotools": "coco",
    "sklearn": "demo",
}


def missing_dependency(error: ImportError) -> MissingDependencyError | None:
    """Return the error that says what to install, or None where `error` is not about one of our optional libraries."""
    library = (error.name or "").partition(".")[0]
    if (extra := EXTRA_OF.get(library)) is None:
        return None
    return MissingDependencyError(f"this needs {library}, which is not installed: pip install 'pyquant-codec[{extra}]'")

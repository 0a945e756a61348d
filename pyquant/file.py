"""The `.pqmodel` file: what it says about a network, read with every check and written whole or not at all.

The bytes are described in `pyquant.container`, the tensors of each layer and of the network in `pyquant.layers`.
`__metadata__` holds:

    format_version   "major.minor"; a newer major version is refused, a newer minor one may hold further entries
    features         what a reader must understand, separated by commas; an unknown one is refused by name
    graph            the layers and how they are connected, JSON (`Graph.to_json`)
    preprocessing    JSON (`to_json` of `Preprocessing` or `DetectorPreprocessing`); "" where inputs are not pictures
    classes          a line a class: folder name, blank, name to show
    provenance       how the file was made, JSON without times, paths or thread counts

A tensor may be stored entropy-coded, under another name (`pyquant.entropy`); the feature "rans" says so.

What fast inference needs to know of activations is the optional tensor `activation_ranges` of the network: for each
value the lowest and the highest number that its 8-bit form can stand for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.classes import ClassName, format_classes, parse_classes
from pyquant.codecs import DenseConfig
from pyquant.container import PREFIX_BYTES, check_prefix, compact_json, pack, parse_json, unpack
from pyquant.declared import check_tensors, declared_tensors
from pyquant.detector import DETECTIONS, KIND, DetectorPreprocessing, label_count
from pyquant.entropy import SUFFIX, coded_tensors, is_coded, whole_tensors
from pyquant.errors import FormatError, InputError
from pyquant.graph import Graph, Network
from pyquant.layers import CODECS, ENTROPY_CODED, FEATURES
from pyquant.preprocessing import Preprocessing
from pyquant.storage import AnyPath, check_writable, open_input, write_whole

__all__ = [
    "FORMAT_VERSION",
    "TARGET_BYTES",
    "ClassName",
    "ModelFile",
    "check_classes",
    "check_writable",
    "dumps",
    "loads",
    "planned_bytes",
    "planned_tensors",
    "read_model",
    "write_model",
]

FORMAT_VERSION = "1.0"
TARGET_BYTES = "target_bytes"  # the entry of `provenance` that a file has whose size was asked for
_MAJOR, _MINOR = (int(part) for part in FORMAT_VERSION.split("."))
SPARE_DIGITS = "0000"  # of an entropy-coded tensor's size, which may have more of them than was planned
_ENTRIES = ("format_version", "features", "preprocessing", "classes", "provenance", "graph")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """All that a `.pqmodel` holds.

    `provenance` is plain JSON, without times, paths or thread counts, so that the same input gives the same file. Some
    of its entries are read again: by `inspect`, `dense`, the reason of each layer left dense, and `errors`, the
    `relative_output_error` of each compressed one, both by layer name; by the writer, TARGET_BYTES.
    """

    network: Network
    preprocessing: Preprocessing | DetectorPreprocessing | None = None
    classes: tuple[ClassName, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format_version: str = FORMAT_VERSION

    @property
    def made_for_size(self) -> bool:
        """Whether a size was asked for, whatever has become of the file since."""
        return TARGET_BYTES in self.provenance

    @property
    def cropped(self) -> Preprocessing:
        """How a picture becomes the input of a network that takes one crop of each.

        Raises:
            InputError: the file does not say it, or holds a detector.
        """
        if self.preprocessing is None:
            raise InputError("the file does not say how pictures become inputs: it was written without preprocessing")
        if isinstance(self.preprocessing, DetectorPreprocessing):
            raise InputError("the file holds a detector; expected a network that takes pictures of one size")
        return self.preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a file stores a network."""

    features: tuple[str, ...]  # what a reader must understand beyond the base format, sorted
    tensor_bytes: Mapping[str, int]  # of each tensor of the network, as it is in the file


def dumps(model: ModelFile, *, fixed_length: bool = False) -> bytes:
    """Return the bytes of a `.pqmodel`; the same model gives the same bytes.

    Tensors are entropy-coded where that makes the file smaller. In a file that was made for a size only those of
    weights at a rate and masks are: codecs are chosen before codes are learnt, and of no others is it known then what
    they take.

    Args:
        model: what it is to hold.
        fixed_length: store the tensors of any file as they are, so that its size does not depend on their contents.

    Raises:
        FormatError: the model would not be readable again; all unusable tensors are listed.
    """
    metadata = _metadata(model, entropy_coded=False)
    _model(metadata, model.network.tensors)
    plain = pack(metadata, model.network.tensors)
    only = set(planned_tensors(model.network)) if model.made_for_size else None
    if fixed_length or only == set():
        return plain
    # What coding saves may be less than what the header grows by.
    coded = pack(_metadata(model, entropy_coded=True), coded_tensors(model.network, only))
    return min(plain, coded, key=len)


def planned_bytes(model: ModelFile) -> int:
    """Return the bytes that a file made for a size will have, or a few more; `model` may have zeros for codes.

    Raises:
        FormatError: as `dumps`.
    """
    planned = planned_tensors(model.network)
    kept = {name: tensor for name, tensor in model.network.tensors.items() if name not in planned}
    coded = {f"{name}{SUFFIX}{SPARE_DIGITS}": np.zeros(size, np.uint8) for name, size in planned.items()}
    return len(pack(_metadata(model, entropy_coded=bool(planned)), kept | coded))


def _metadata(model: ModelFile, *, entropy_coded: bool) -> dict[str, str]:
    try:
        return {
            "format_version": FORMAT_VERSION,
            "features": ",".join(_features(model.network.graph, entropy_coded=entropy_coded)),
            "preprocessing": compact_json(model.preprocessing.to_json()) if model.preprocessing else "",
            "classes": format_classes(model.classes),
            "provenance": compact_json(model.provenance, sort_keys=True),
            "graph": compact_json(model.network.graph.to_json()),
        }
    except (TypeError, ValueError) as error:
        raise FormatError(f"the model cannot be written: {error}") from error


def planned_tensors(network: Network) -> dict[str, int]:
    """Return the tensors, by name, of which it is planned how many bytes they take at most when entropy-coded.

    They are those of weights at a rate, and masks.
    """
    planned: dict[str, int] = {}
    for _, weight in network.graph.weighted():
        if not isinstance(weight.codec, DenseConfig):
            sizes = weight.codec.planned_bytes(weight.shape)
            planned |= {weight.tensor(role): size for role, size in sizes.items()}
    return planned


def loads(data: bytes | memoryview, name: str) -> ModelFile:
    """Return what a `.pqmodel` with the bytes `data` holds, all of it checked; `name` begins the error messages.

    Raises:
        FormatError: the file is not a `.pqmodel`, is damaged, or needs a newer pyquant.
    """
    try:
        metadata, tensors = unpack(bytes(data))
        return _model(metadata, tensors)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error


def read_model(path: AnyPath) -> ModelFile:
    """Return what the `.pqmodel` at `path` holds, all of it checked.

    The file is read into memory, not mapped: what has been checked cannot be changed by another process afterwards.

    Raises:
        InputError: the file is missing or cannot be read.
        FormatError: it is not a `.pqmodel`, is damaged, or needs a newer pyquant.
    """
    name = os.fspath(path)
    with open_input(path) as file:
        try:
            # Before reading on, so that a large file of another kind is refused at once.
            check_prefix(file.read(PREFIX_BYTES), os.fstat(file.fileno()).st_size)
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from error
        file.seek(0)
        data = file.read()
    return loads(data, name)


def read_storage(path: AnyPath) -> Storage:
    """Return how the `.pqmodel` at `path`, which `read_model` can read, stores its network.

    Raises:
        InputError: the file is missing or cannot be read.
        FormatError: it is not a `.pqmodel`.
    """
    with open_input(path) as file:
        length = check_prefix(file.read(PREFIX_BYTES), os.fstat(file.fileno()).st_size)
        file.seek(8)
        header = parse_json(file.read(length), "the header")
    features = header.pop("__metadata__")["features"]
    sizes = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
    return Storage(
        features=tuple(features.split(",")) if features else (),
        tensor_bytes={name.removesuffix(SUFFIX): size for name, size in sizes.items()},
    )


def write_model(path: AnyPath, model: ModelFile) -> int:
    """Write a `.pqmodel` and return its size in bytes; whatever happens, `path` holds all of it or what it held before.

    Raises:
        FormatError: the model would not be readable again.
        InputError: the file cannot be written, for example because the disk is full.
    """
    check_writable(path)
    data = dumps(model)
    write_whole(path, data)
    return len(data)


def check_classes(graph: Graph, classes: Sequence[ClassName]) -> None:
    """Check that there is a class for each output of a classifier, or label of a detector, the background included.

    Raises:
        InputError: the numbers differ.
    """
    output = graph.infer_shapes()[graph.outputs[0]]
    if classes and (labels := label_count(graph)):
        if labels != len(classes):
            raise InputError(
                f"{len(classes)} classes are named, but the detector has {labels}, of which the first is the background"
            )
    elif classes and len(graph.outputs) == 1 and len(output) == 2 and output[1] != len(classes):
        raise InputError(f"{len(classes)} classes are named, but the network has {output[1]} outputs")


def _model(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> ModelFile:
    """Return the model, version and features checked first: of a file that is too new nothing else can be expected."""
    minor = _check_version(metadata.get("format_version", ""))
    if missing := [entry for entry in _ENTRIES if entry not in metadata]:
        raise FormatError(f"__metadata__ lacks {', '.join(missing)}")
    if minor <= _MINOR and (unknown := sorted(metadata.keys() - set(_ENTRIES))):
        raise FormatError(f"__metadata__ has unknown entries: {', '.join(unknown)}")
    features = tuple(metadata["features"].split(",")) if metadata["features"] else ()
    if unknown := [f"'{feature}'" for feature in features if feature not in FEATURES]:
        raise FormatError(
            f"the file needs {', '.join(unknown)}, which this pyquant does not know (it knows "
            f"{', '.join(sorted(FEATURES))}); use a newer one"
        )
    preprocessing = metadata["preprocessing"]
    graph = Graph.from_json(parse_json(metadata["graph"], "the graph"))
    expected = _features(graph, entropy_coded=any(is_coded(name) for name in tensors))
    if features != expected:
        raise FormatError(f"features: the file uses {list(expected)}, it declares {list(features)}")
    declared = declared_tensors(graph)  # first of all, it makes sure that the graph can run
    model = ModelFile(
        network=Network(graph=graph, tensors=whole_tensors(declared, tensors)),
        preprocessing=_parse_preprocessing(parse_json(preprocessing, "preprocessing")) if preprocessing else None,
        classes=_parse_classes(metadata["classes"]),
        provenance=_parse_provenance(metadata["provenance"]),
        format_version=metadata["format_version"],
    )
    check_tensors(model.network, declared)
    _check_fits(model)
    return model


def _features(graph: Graph, *, entropy_coded: bool) -> tuple[str, ...]:
    """Return what a reader of a file of this graph must understand beyond the base format, sorted."""
    used = {CODECS[weight.codec_name].feature for _, weight in graph.weighted()}
    return tuple(sorted(feature for feature in {*used, ENTROPY_CODED if entropy_coded else None} if feature))


def _check_version(version: str) -> int:
    """Return the minor version; raise FormatError unless this reader understands the major one."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})\.([0-9]{1,4})", version, re.ASCII)
    if match is None:
        raise FormatError(f"format_version: expected 'major.minor', got '{version[:20]}'")
    major, minor = (int(part) for part in match.groups())
    if major > _MAJOR:
        raise FormatError(f"format version {version} is newer than {FORMAT_VERSION}; use a newer pyquant")
    return minor


def _parse_classes(text: str) -> tuple[ClassName, ...]:
    try:
        return parse_classes(text) if text else ()
    except ValueError as error:
        raise FormatError(f"classes: {error}") from error


def _parse_preprocessing(value: Any) -> Preprocessing | DetectorPreprocessing:
    is_detector = isinstance(value, Mapping) and value.get("kind") == KIND
    return DetectorPreprocessing.from_json(value) if is_detector else Preprocessing.from_json(value)


def _parse_provenance(text: str) -> dict[str, Any]:
    provenance = parse_json(text, "provenance")
    for key, kinds in (("dense", (str,)), ("errors", (float, int, type(None)))):
        values = provenance.get(key, {})
        if not isinstance(values, dict) or not all(type(value) in kinds for value in values.values()):
            raise FormatError(f"provenance: '{key}' must hold one {kinds[0].__name__} for each layer")
    return provenance


def _check_fits(model: ModelFile) -> None:
    graph = model.network.graph
    if isinstance(model.preprocessing, DetectorPreprocessing):
        ranks = [len(declared.shape) for declared in graph.inputs]
        found = [node.output for op in DETECTIONS for node in graph.of_kind(op)]
        if ranks != [4, 2] or graph.outputs[:1] != tuple(found[:1]):
            raise FormatError("preprocessing is a detector's: expected inputs images and sizes, and output detections")
    try:
        check_classes(graph, model.classes)
    except InputError as error:
        raise FormatError(str(error)) from error

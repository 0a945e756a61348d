"""What was learnt, as a record of a checkpoint: saved when a stage of a job is over, so that it is not done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pyquant.checkpoint import Records
from pyquant.graph import Graph, Network
from pyquant.learn.layerwise import Learnt
from pyquant.learn.norms import Norm

NETWORK, NORM = "network", "norm"


def save_learnt(records: Records, name: str, learnt: Learnt, values: Mapping[str, Any]) -> None:
    """Save a network as it was learnt, and plain JSON values with it."""
    arrays = {f"{NETWORK} {key}": array for key, array in learnt.network.tensors.items()}
    eps = {}
    for path, norm in learnt.norms.items():
        fields = asdict(norm)
        eps[path] = fields.pop("eps")
        arrays |= {f"{NORM} {field} {path}": array for field, array in fields.items()}
    described = {
        "graph": learnt.network.graph.to_json(),
        "errors": dict(learnt.errors),
        "eps": eps,
        "values": dict(values),
    }
    records.save(name, described, arrays)


def load_learnt(records: Records, name: str) -> tuple[Learnt, Mapping[str, Any]] | None:
    """Return what `save_learnt` was given, or None where nothing was saved under this name."""
    if (record := records.load(name)) is None:
        return None
    tensors, fields = {}, {path: {"eps": eps} for path, eps in record.values["eps"].items()}
    for key, array in record.arrays.items():
        kind, _, rest = key.partition(" ")
        if kind == NETWORK:
            tensors[rest] = array
        else:
            field, _, path = rest.partition(" ")
            fields[path][field] = np.array(array)
    learnt = Learnt(
        network=Network(graph=Graph.from_json(record.values["graph"]), tensors=tensors),
        errors=record.values["errors"],
        norms={path: Norm(**values) for path, values in fields.items()},
    )
    return learnt, record.values["values"]

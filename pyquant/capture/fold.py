"""Folding: a batch norm becomes the scale and bias of the convolution or linear layer before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from pyquant.capture.drafts import Draft


def fold_batch_norms(drafts: Sequence[Draft], outputs: Collection[int]) -> list[Draft]:
    """Return the layers with each batch norm folded that alone reads a convolution or linear layer.

    The weights stay as they are: y = (W x) * scale + bias. Where several layers share a bias or a batch norm and
    folding would need different values of it, the batch norm stays by itself: so the network can be exported again.
    """
    readers = Counter(value for draft in drafts for value in draft.inputs) + Counter(outputs)
    uses_of_weight = Counter(draft.weight.identity for draft in drafts if draft.weight is not None)
    uses_of_norm = Counter(draft.state.norm for draft in drafts if draft.state.norm)
    producer = {draft.output: draft for draft in drafts}
    folded: dict[int, Draft] = {}  # by the output of the layer that takes the batch norm in
    absorbed = set()
    for norm in drafts:
        layer = producer.get(norm.inputs[0])
        if not norm.state.norm or layer is None or layer.weight is None or readers[layer.output] > 1:
            continue
        shared = uses_of_weight[layer.weight.identity] > 1 or uses_of_norm[norm.state.norm] > 1
        if "bias" in layer.own and shared:
            continue
        folded[layer.output] = _folded(layer, norm)
        absorbed.add(norm.output)
    return [folded.get(draft.output, draft) for draft in drafts if draft.output not in absorbed]


def _folded(layer: Draft, norm: Draft) -> Draft:
    scale, bias = norm.own["scale"], norm.own["bias"].astype(np.float64)
    if "bias" in layer.own:
        bias = bias + layer.own["bias"].astype(np.float64) * scale
    return replace(
        layer,
        output=norm.output,
        own={"scale": scale, "bias": bias.astype(np.float32)},
        state=replace(layer.state, norm=norm.state.norm, norm_affine=norm.state.norm_affine, eps=norm.state.eps),
    )

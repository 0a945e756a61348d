"""A network as safetensors: the state dict of the module it was captured from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save

from pyquant.export.state import state_dict
from pyquant.storage import AnyPath, write_whole

if TYPE_CHECKING:
    from pyquant.file import ModelFile


def export_safetensors(model: ModelFile, path: AnyPath) -> int:
    """Write the decoded state dict of `model`, batch norms kept, and return its size in bytes; see `state_dict`.

    Raises:
        InputError: the network has no state dict under its module's names, or `path` cannot be written.
    """
    data = save({name: np.asarray(value, order="C") for name, value in state_dict(model.network).items()})
    write_whole(path, data)
    return len(data)

"""Fit released weights to a module: every name is used or ignored for a reason, and every size is right."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from divot_lightning.errors import UserError, problem_lines
from divot_lightning.interop.released_keys import KeyTable, from_released


def convert(
    released: Mapping[str, Tensor], table: KeyTable, module: nn.Module, file: str | Path, *, keep_dtype: bool = False
) -> dict[str, Tensor]:
    """Rename released weights, and check them against a module.

    Axes of length 1 may differ: a released scalar becomes a vector of one element, which DeepSpeed can shard, and the
    weight of a 1x1 convolution that of a linear layer.

    Args:
        released: Released name -> tensor.
        table: Names of the module.
        module: The module; only names and shapes of its state are read, so it may be on the meta device.
        file: Where the weights come from, for messages.
        keep_dtype: Keep the stored dtype, which halves the size of a language model; else all become float32.

    Returns:
        Name of the module's state -> tensor of its shape; all names of the state.

    Raises:
        UserError: Names are unknown or missing, or sizes differ.
    """
    try:
        renamed = from_released(released, table)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    fitted = {name: _fit(value, shapes[name]) for name, value in renamed.items() if name in shapes}
    problems = {
        "missing": sorted(shapes.keys() - renamed.keys()),
        "not expected": sorted(renamed.keys() - shapes.keys()),
        "of another size": [
            f"{name} {tuple(renamed[name].shape)} instead of {tuple(shapes[name])}"
            for name, value in sorted(fitted.items())
            if value is None
        ],
    }
    if lines := problem_lines(problems):
        raise UserError("\n".join([f"{file} does not fit a {table.part} of the released size", *lines]))
    return {name: value if keep_dtype else value.float() for name, value in fitted.items() if value is not None}


def ignored_reasons(released: Mapping[str, Tensor], table: KeyTable) -> dict[str, int]:
    """Return why names of a file are not used, with the number of names."""
    reasons = (
        next((why for prefix, why in table.ignored.items() if name.startswith(prefix)), None) for name in released
    )
    return dict(Counter(why for why in reasons if why is not None))


def _fit(value: Tensor, shape: torch.Size) -> Tensor | None:
    if [size for size in value.shape if size != 1] != [size for size in shape if size != 1]:
        return None
    return value.reshape(shape).contiguous()

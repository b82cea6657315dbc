"""Weight initialization that depends only on the seed and on each parameter's name.

Each parameter has its own random stream (Philox, keyed by a hash of seed and name), drawn in fp32 by numpy on the CPU.
So a seed gives the same weights on any device, thread count and processor, whatever the order of construction; adding
a layer keeps the weights of the others, up to the scale of the residual projections.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from mmcli.model.config import ModelConfig

RESIDUAL_OUTPUTS = ("o_proj", "down_proj")  # projections added to the residual stream


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Initialize every parameter in place: biases 0, norms 1, the rest normal(0, init_std).

    The projections that write to the residual stream are scaled by 1/sqrt(2 * n_layers) (Radford et al. 2019, GPT-2,
    section 2.3), so that its variance does not grow with depth.
    """
    std, residual_std = config.init_std, config.init_std / (2 * config.n_layers) ** 0.5
    for name, parameter in model.named_parameters():
        *_, owner, leaf = ("", *name.split("."))
        if leaf == "bias":
            parameter.zero_()
        elif "norm" in owner:
            parameter.fill_(1.0)
        else:
            key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            random = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
            values = torch.from_numpy(random.standard_normal(tuple(parameter.shape), dtype=np.float32))
            is_output = owner in RESIDUAL_OUTPUTS or leaf in RESIDUAL_OUTPUTS  # stacked experts have no ".weight"
            parameter.copy_(values.mul_(residual_std if is_output else std))

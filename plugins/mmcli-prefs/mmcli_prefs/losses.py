"""The losses of preference pairs.

Shapes: P pairs; [P, 2] holds the chosen reply and the rejected one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcli_prefs import PrefsConfig

LN_2 = 0.6931471805599453


def pair_losses(
    config: PrefsConfig, logps_P2: Tensor, lengths_P2: Tensor, reference_P2: Tensor
) -> tuple[Tensor, Tensor]:
    """(loss_P, margin_P). The margin is above 0 where the chosen reply is preferred.

    Args:
        logps_P2: log-probabilities of the replies, summed over their tokens.
        lengths_P2: tokens of the replies.
        reference_P2: log-probabilities under the reference; of `ipo` alone.
    """
    beta = config.strength
    means_P2 = logps_P2 / lengths_P2
    if config.loss == "ipo":  # Azar et al. 2023, equation 17, of means over tokens
        margin_P = _difference((logps_P2 - reference_P2) / lengths_P2)
        loss_P = (margin_P - 1 / (2 * beta)) ** 2
    elif config.loss == "orpo":  # Hong et al. 2024, equations 4 and 7
        margin_P = _difference(means_P2 - _log1mexp(means_P2))
        loss_P = -beta * F.logsigmoid(margin_P)
    elif config.loss == "simpo":  # Meng et al. 2024, equation 6
        margin_P = beta * _difference(means_P2)
        loss_P = -F.logsigmoid(margin_P - config.target)
    else:  # Xu et al. 2024, equation 3
        margin_P = beta * _difference(logps_P2)
        loss_P = -F.logsigmoid(margin_P)
    if config.nll_weight:
        loss_P = loss_P - config.nll_weight * means_P2[:, 0]
    return loss_P, margin_P


def _difference(values_P2: Tensor) -> Tensor:
    return values_P2[:, 0] - values_P2[:, 1]


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x below 0; the branch keeps the digits of both ends (Mächler 2012, equation 7).

    At 0, the certain reply, x counts as the largest number below it.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return torch.where(x < -LN_2, torch.log1p(-x.exp()), torch.log(-torch.expm1(x)))

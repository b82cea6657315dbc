"""LoRA (Hu et al. 2021, arXiv:2106.09685) for mmcli: what `--adapter lora` is. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from mmcli.api import Adapter, ConfigError, did_you_mean, option

LAYERS = ("q", "k", "v", "o", "gate", "up", "down")  # without their `_proj`
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """W x + (alpha / rank) B A x, with W frozen."""

    rank: int = option(8, "rows of A and columns of B")
    alpha: float = option(16.0, "weight of the addition, times rank")
    dropout: float = option(0.0, "dropout on what A is given, 0 to 1")
    targets: str = option(ALL, "linear layers to adapt: all, or some of " + ",".join(LAYERS))

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError("rank", f"rank = {self.rank} is below 1", "give 1 or more, such as 8")
        if self.alpha <= 0:
            raise ConfigError("alpha", f"alpha = {self.alpha} is not positive", "give about twice the rank")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError("dropout", f"dropout = {self.dropout} is not in 0 to 1", "give 0.0 up to below 1.0")
        for name in self.layers:
            if name not in LAYERS:
                raise ConfigError("targets", f'targets: there is no layer "{name}"', did_you_mean(name, [*LAYERS]))

    @property
    def layers(self) -> tuple[str, ...]:
        """The chosen layers, without their `_proj`."""
        if self.targets == ALL:
            return LAYERS
        return tuple(part.strip().removesuffix("_proj") for part in self.targets.split(","))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


LORA = Adapter(
    name="lora",
    summary="Train low-rank additions to the linear layers; the model itself stays frozen.",
    config=LoraConfig,
    build="mmcli_lora.transform:LoraTransform",
)

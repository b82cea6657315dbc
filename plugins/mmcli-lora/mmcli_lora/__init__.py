"""LoRA (Hu et al. 2021, arXiv:2106.09685) and DoRA (Liu et al. 2024, arXiv:2402.09353) for mmcli: what
`--adapter lora` is. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from mmcli.api import Adapter, ConfigError, did_you_mean, option

LAYERS = ("q", "k", "v", "o", "gate", "up", "down")  # without their `_proj`
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is added to each matrix: scale * B A, with A [rank, in] and B [out, rank]; and with DoRA a magnitude."""

    rank: int = 8
    alpha: float = 16.0
    use_rslora: bool = False
    use_dora: bool = False

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) where it is rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732)."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What `--adapter-set` fills. With `adapter_from` its folder decides all but the dropout; nothing else is given."""

    rank: int | None = option(None, "rows of A and columns of B; default: 8")
    alpha: float | None = option(None, "weight of the addition, times rank; default: 16")
    dropout: float = option(0.0, "dropout on what A is given, 0 to 1")
    targets: str | None = option(None, "linear layers to adapt: all (default), or some of " + ",".join(LAYERS))
    use_rslora: bool | None = option(None, "divide alpha by the root of rank; default: no")
    use_dora: bool | None = option(None, "learn the length of each row of W too (DoRA); default: no")
    adapter_from: str | None = option(None, "folder of an adapter to go on with: adapter/ of a run, or PEFT's")

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError("rank", f"rank = {self.rank} is below 1", "give 1 or more, such as 8")
        if self.alpha is not None and self.alpha <= 0:
            raise ConfigError("alpha", f"alpha = {self.alpha} is not positive", "give about twice the rank")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError("dropout", f"dropout = {self.dropout} is not in 0 to 1", "give 0.0 up to below 1.0")
        for name in self.layers:
            if name not in LAYERS:
                raise ConfigError("targets", f'targets: there is no layer "{name}"', did_you_mean(name, [*LAYERS]))
        for name in ("rank", "alpha", "targets", "use_rslora", "use_dora") if self.adapter_from is not None else ():
            if getattr(self, name) is not None:
                what = f"{name} = {getattr(self, name)} beside adapter_from = {self.adapter_from}"
                raise ConfigError(name, what, f"leave {name} out: the adapter keeps its own")

    @property
    def layers(self) -> tuple[str, ...]:
        """The chosen layers, without their `_proj`."""
        if self.targets is None or self.targets == ALL:
            return LAYERS
        return tuple(part.strip().removesuffix("_proj") for part in self.targets.split(","))

    @property
    def recipe(self) -> Recipe:
        """The recipe of a new adapter."""
        given = {name: getattr(self, name) for name in ("rank", "alpha", "use_rslora", "use_dora")}
        return Recipe(**{name: value for name, value in given.items() if value is not None})


LORA = Adapter(
    name="lora",
    summary="Train low-rank additions to the linear layers; the model itself stays frozen.",
    config=LoraConfig,
    build="mmcli_lora.transform:LoraTransform",
    reads=("adapter_from",),
)

"""Continued pretraining with a replay mixture: `mmcli continue`. Its work is in `training` (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mmcli.api import ConfigError, DataConfig, OptimConfig, Stage, TrainConfig, option


@dataclass(frozen=True, kw_only=True)
class ContinueData(DataConfig):
    """The new text, which has no default."""

    sources: tuple[str, ...] = option((), "the new text: files, folders or globs", flag="--data")

    def __post_init__(self) -> None:
        if not self.sources:
            fix = "name it: --data news/; to resume a stopped run: mmcli resume"
            raise ConfigError("sources", "mmcli continue needs new text", fix)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ContinueConfig:
    """New text and old text in one step (Ibrahim et al. 2024, arXiv:2403.08763)."""

    replay: tuple[str, ...] | None = option(None, "old text; none: what the model it starts from was pretrained on")
    replay_share: float = option(0.25, "share of the rows of every step that are old text, between 0 and 1")
    data: ContinueData = option(ContinueData, "the new text")
    optim: OptimConfig = option(OptimConfig, "the optimizer")
    train: TrainConfig = option(TrainConfig, "the training")

    def __post_init__(self) -> None:
        if not 0.0 < self.replay_share < 1.0:
            what = f"replay_share = {self.replay_share} is not between 0 and 1"
            raise ConfigError(
                "replay_share", what, "give a share such as 0.25; without old text: mmcli pretrain --from"
            )
        size, share = self.train.batch_size, Fraction(str(self.replay_share))
        if (size * share).denominator != 1:
            what = f"replay_share = {self.replay_share} of --batch-size {size} is {float(size * share):g} rows"
            fitting = -(-size // share.denominator) * share.denominator
            raise ConfigError("replay_share", what, f"every step has whole rows: give --batch-size {fitting}")

    @property
    def old_rows(self) -> int:
        """Rows of old text in every step, of `train.batch_size` in all."""
        return int(self.train.batch_size * Fraction(str(self.replay_share)))


CONTINUE = Stage(
    name="continue",
    summary="Train on with new text, replaying old text so that it is not forgotten.",
    config=ContinueConfig,
    run="mmcli_replay.training:run",
    defaults={"train.start_from": "latest:pretrain", "optim.lr": 2e-4},
    example="mmcli continue --data news/ --replay-share 0.25",
)

"""What the stages of this plugin have in common: how they begin, and the metrics that they show."""

from __future__ import annotations

from collections.abc import Callable

from mmcli.api import (
    DataConfig,
    Metric,
    OpenedData,
    StageContext,
    Start,
    TrainConfig,
    open_data,
    prepare_start,
)

ACCURACY = Metric("accuracy", label="acc")
HELD_OUT_METRICS = (Metric("val_loss", label="val"), Metric("val_accuracy", label="val acc"))
PAIR_METRICS = (Metric("loss"), Metric("margin"), ACCURACY, *HELD_OUT_METRICS)


def open_preferences(data: DataConfig) -> OpenedData:
    """Preference pairs.

    Raises:
        UserError: the data holds none.
    """
    return open_data("preference", data)


def begin(
    data: DataConfig,
    train: TrainConfig,
    context: StageContext,
    opened: Callable[[DataConfig], OpenedData] = open_preferences,
) -> tuple[OpenedData, Start]:
    """The data, refused before anything is made, and the model that is trained from.

    Raises:
        UserError: the data or the model cannot be used.
    """
    found = opened(data)
    return found, prepare_start(None, found, train, context)

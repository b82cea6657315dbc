"""Results kept in the run of the model that was measured, where `mmcli runs show` and report.html show them."""

from __future__ import annotations

from typing import Any, Protocol

from mmcli.errors import MmcliError
from mmcli.report.evaluations import keep_evaluation
from mmcli.report.page import REPORT, write_report
from mmcli.run import ModelRef
from mmcli.stage import Reporter, Silent


class Result(Protocol):
    """What was measured: a SuiteResult, SuiteFigures, a PreferenceAccuracy or a HeldOutLoss."""

    def to_json(self) -> dict[str, Any]: ...


def keep_result(ref: ModelRef, result: Result, report: Reporter | None = None) -> bool:
    """Keep a result in the run of a model, and write its report.html anew; whether it was kept.

    It replaces an earlier one with the same settings. A model without a run keeps nothing, nor does a `best/`, and
    neither does a run keep a control (shuffled answers). A run that cannot be written gives a warning.
    """
    values = result.to_json()
    if ref.run is None or ref.is_best or values.get("shuffled"):
        return False
    try:
        keep_evaluation(ref.run, values)
        if (ref.run.path / REPORT).is_file():
            write_report(ref.run)
    except (MmcliError, OSError) as error:
        why = error.what if isinstance(error, MmcliError) else error
        (report or Silent()).warn(f"the result is not kept: {why}")
        return False
    return True

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mmcli.config import resolve
from mmcli.run import RESOLVED, Run
from mmcli.stage import Reporter, Silent, StageContext
from mmcli.train.config import TrainConfig
from mmcli.train.device import choose_accelerator, keep_freed_memory, make_deterministic, seed_step
from mmcli.train.speed import Rates, product_rates


def context(folder: Path, report: Reporter | None = None) -> StageContext:
    run = Run(folder / "0001-pretrain-test")
    run = run if run.path.is_dir() else Run.create(folder, "pretrain", "test")
    return StageContext(run, report or Silent(), resolve(TrainConfig, []))


def measured(bf16: float | None) -> Rates:
    rates = {"fp32": 1e11} if bf16 is None else {"fp32": 1e11, "bf16": bf16}
    return lambda device, width: rates


@pytest.mark.parametrize(
    ("bf16", "expected"), [(6e11, "bf16"), (1.3e11, "bf16"), (1.25e11, "fp32"), (1e10, "fp32"), (None, "fp32")]
)
def test_auto_takes_bf16_where_its_products_are_measured_to_be_quicker(bf16: float | None, expected: str) -> None:
    assert choose_accelerator("cpu", "auto", rates=measured(bf16)).precision == expected
    for asked in ("fp32", "bf16"):
        assert choose_accelerator("cpu", asked, rates=measured(bf16)).precision == asked


def test_a_run_keeps_its_precision_and_never_measures_again(tmp_path: Path) -> None:
    def refuse(device: torch.device, width: int) -> dict[str, float]:
        raise AssertionError("measured again")

    assert choose_accelerator("cpu", "auto", context(tmp_path), rates=measured(2.4e11)).precision == "bf16"
    assert context(tmp_path).run.read_config(RESOLVED)["precision"] == "bf16"
    assert choose_accelerator("cpu", "auto", context(tmp_path), rates=refuse).precision == "bf16"


def test_bf16_is_told_with_what_it_gains_once(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    for _ in range(2):
        choose_accelerator("cpu", "auto", context(tmp_path, Notes()), rates=measured(2.4e11))
    assert notes == ["precision: bf16, whose matrix products are 2.4 times as quick here"]


def test_the_randomness_of_a_step_takes_any_seed() -> None:
    for seed, step, rank in ((7, 12, 1), (0, 0, 0)):
        seed_step(seed, step, rank)
        assert torch.initial_seed() == (seed * 1_000_003 + step) * 4099 + rank
    for seed in (20260101123000, 2**63 - 1, -(2**63)):
        seed_step(seed, 3)
        first = torch.rand(1)
        seed_step(seed, 4)
        assert torch.rand(1) != first


def test_algorithms_are_deterministic_but_on_mps() -> None:
    """There, what a training needs has no deterministic form, and torch raises."""
    try:
        make_deterministic(torch.device("mps"))
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        make_deterministic(torch.device("cpu"))
    assert torch.are_deterministic_algorithms_enabled()


def test_the_rates_of_this_machine_are_measured_in_a_moment() -> None:
    started = time.perf_counter()
    rates = product_rates(torch.device("cpu"), 256)
    assert time.perf_counter() - started < 2.0
    assert 1e8 < rates["fp32"] < 1e15 and 1e6 < rates["bf16"] < 1e15
    assert product_rates(torch.device("cpu"), 256) is rates


def test_memory_settings_hurt_nothing_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    keep_freed_memory()

from __future__ import annotations

import pytest
import torch

from mmcli.train.device import choose_accelerator, keep_freed_memory


@pytest.mark.parametrize(("amx", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_computes_in_bf16_where_it_has_units_for_it(
    amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    assert choose_accelerator("cpu", "auto").precision == expected
    assert choose_accelerator("cpu", "fp32").precision == "fp32"


def test_a_torch_that_does_not_tell_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_accelerator("cpu", "auto").precision == "fp32"


def test_memory_settings_hurt_nothing_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    keep_freed_memory()

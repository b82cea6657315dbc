"""The formats in which an ONNX export stores matrices: one list, for the library and the command line."""

from __future__ import annotations

import typing

from mmcli.cli.export import onnx
from mmcli.export.locate import Dtype
from mmcli.export.matrices import FORMATS


def test_every_format_can_be_asked_for() -> None:
    assert tuple(FORMATS) == typing.get_args(Dtype)
    option = typing.get_type_hints(onnx)["dtype"]
    assert typing.get_args(option) == tuple(FORMATS)


def test_every_format_is_held_to_its_logits_and_its_perplexity() -> None:
    for matrices in FORMATS.values():
        assert matrices.limits.perplexity > 0
        assert (matrices.limits.logits is None) != (matrices.limits.logits_error is None)

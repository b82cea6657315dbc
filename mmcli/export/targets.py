"""What a target of ONNX exports makes of the folder once its graph is proven. To add one: a line in `FINISH`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mmcli.export.genai import compare_with_genai, refuse_missing
from mmcli.export.locate import Dtype, Target
from mmcli.export.mobile import add_ort_format, refuse_half
from mmcli.export.web.layout import lay_out


def _nothing(folder: Path, dtype: Dtype) -> None:
    pass


FINISH: Mapping[Target, Callable[[Path, Dtype], None]] = {
    "cpu": _nothing,
    "mobile": lambda folder, dtype: add_ort_format(folder),
    "web": lay_out,
    "genai": lambda folder, dtype: compare_with_genai(folder),
}

PORTABLE: frozenset[Target] = frozenset({"mobile", "web"})  # where ONNX Runtime may be older and have fewer operators


def refuse_impossible(target: Target, dtype: Dtype) -> None:
    """Raise UserError for a target that cannot be made here, or not in this format."""
    if target == "genai":
        refuse_missing()
    if target == "mobile":
        refuse_half(dtype)

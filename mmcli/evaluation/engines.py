"""One way to get an engine for a model that a person named, whatever runs it."""

from __future__ import annotations

from mmcli.errors import UserError
from mmcli.generate.engine import Engine
from mmcli.run import ModelRef
from mmcli.stage import Reporter

BACKENDS = ("torch", "onnx")


def load_engine(
    ref: ModelRef,
    backend: str = "torch",
    *,
    device: str = "auto",
    slots: int = 1,
    max_len: int | None = None,
    threads: int | None = None,
    report: Reporter | None = None,
) -> Engine:
    """The engine of a model. torch is imported only where it is needed.

    "onnx" takes a folder that is an export as it is, else the model's fp32 export; if there is none of these weights,
    it is made, and `report` says so.

    Args:
        threads: of the backend; None leaves it to the backend.

    Raises:
        UserError: no model there, a device that the backend lacks, or a model that cannot be exported.
        MmcliError: the export differs from torch.
    """
    if backend == "torch":
        import torch

        from mmcli.generate.torch_engine import TorchEngine

        if threads is not None:
            torch.set_num_threads(threads)
        return TorchEngine.load(ref.path, slots=slots, max_len=max_len, device=device)
    if device not in ("auto", "cpu"):
        raise UserError(f'device "{device}" with the onnx backend, which runs on the CPU', "give --device cpu")
    from mmcli.export.place import default_folder, find_export
    from mmcli.generate.onnx_engine import OnnxEngine

    folder = find_export(ref)
    if folder is None:
        from mmcli.export.onnx_export import export_onnx

        folder = default_folder(ref, "fp32")
        if report is not None:
            report.note(f"{ref.label} has no ONNX export of these weights yet: making it in {folder}")
        export_onnx(ref.path, folder, stage=ref.run.stage if ref.run else None, report=report)
    return OnnxEngine.load(folder, slots=slots, max_len=max_len, threads=threads)

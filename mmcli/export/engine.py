"""The engine over a model's ONNX export. Neither torch nor onnx is imported unless the export has to be made."""

from __future__ import annotations

from mmcli.errors import UserError
from mmcli.export.locate import default_folder, find_export
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_growing import load_onnx_engine
from mmcli.generate.onnx_threads import choose_threads
from mmcli.manifest import damage
from mmcli.run import ModelRef
from mmcli.stage import Reporter


def open_onnx_engine(
    ref: ModelRef,
    *,
    device: str = "auto",
    slots: int = 1,
    max_len: int | None = None,
    threads: int | None = None,
    report: Reporter | None = None,
) -> Engine:
    """The engine over a folder that is an export, else over the newest export of the model's weights.

    If there is none of these weights, or it is damaged, the fp32 export is made. `report` says so, as it does of an
    export that is not fp32.

    Args:
        threads: of ONNX Runtime; None: the quickest number (see `choose_threads`).

    Raises:
        UserError: a device other than the CPU, a folder that is a damaged export, no model there, or one that cannot
            be exported.
        MmcliError: the export differs from torch.
    """
    if device not in ("auto", "cpu"):
        raise UserError(f'device "{device}" with the onnx backend, which runs on the CPU', "give --device cpu")
    folder = find_export(ref)
    if folder is not None and folder != ref.path and (found := damage(folder)) is not None:
        if report is not None:
            report.warn(f"{found}; exporting again")
        folder = None
    if folder is None:
        from mmcli.export.onnx_export import export_onnx

        folder = default_folder(ref, "fp32")
        if report is not None:
            report.note(f"{ref.label} has no ONNX export of these weights yet: making it in {folder}")
        export_onnx(ref.path, folder, stage=ref.stage, report=report)
    elif report is not None and folder not in (ref.path, default_folder(ref, "fp32")):
        report.note(f"{ref.label}: taking its newest export, {folder}")
    threads = threads or choose_threads(folder, lambda n: load_onnx_engine(folder, max_len=max_len, threads=n))
    return load_onnx_engine(folder, slots=slots, max_len=max_len, threads=threads)

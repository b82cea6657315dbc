"""The engines by name, and the opening of one for a model that a person named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcli.errors import UserError
from mmcli.run import ONNX_GRAPH

if TYPE_CHECKING:
    from mmcli.generate.draft import DraftModel
    from mmcli.generate.engine import Engine
    from mmcli.run import ModelRef
    from mmcli.stage import Reporter
    from mmcli.text.tokenizer import Tokenizer

# "module:function", called with (ref, *, device, slots, max_len, threads, report).
ENGINES = {
    "torch": "mmcli.generate.torch_engine:open_torch_engine",
    "onnx": "mmcli.export.engine:open_onnx_engine",
}


def choose_backend(ref: ModelRef, backend: str) -> str:
    """`backend`; "onnx" for a folder that is an ONNX export, which torch cannot run."""
    is_export = (ref.path / ONNX_GRAPH).is_file() and not any(ref.path.glob("*.safetensors"))
    return "onnx" if is_export and backend in ENGINES else backend


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
    """The engine of a model. A backend's libraries are imported only where it is asked for.

    Args:
        backend: a key of `ENGINES`.
        max_len: tokens of one sequence; None for the longest context of the model.
        threads: of the backend; None leaves it to the backend.

    Raises:
        UserError: no such backend, no model there, a device that the backend lacks, or a model that cannot be
            exported.
        MmcliError: the export differs from torch.
    """
    from mmcli.plugins import load_function

    backend = choose_backend(ref, backend)
    if backend not in ENGINES:
        raise UserError(f'there is no backend "{backend}"', f"give one of: {', '.join(ENGINES)}")
    open_engine = load_function(ENGINES[backend], f"the {backend} backend")
    engine: Engine = open_engine(ref, device=device, slots=slots, max_len=max_len, threads=threads, report=report)
    return engine


def load_draft_model(
    ref: ModelRef,
    target: Engine,
    tokenizer: Tokenizer,
    backend: str,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> DraftModel:
    """The model of `ref` as one that drafts for `target`, whose tokenizer is given, in an engine of the same kind.

    Raises:
        UserError: another vocabulary; see `load_engine` for the rest.
        MmcliError: see `load_engine`.
    """
    from mmcli.generate.draft import DraftModel
    from mmcli.text.tokenizer import Tokenizer

    own = Tokenizer.load(ref.path)
    n = max(own.vocab_size, tokenizer.vocab_size)
    differs = (id for id in range(n) if _token(own, id) != _token(tokenizer, id))
    if (id := next(differs, None)) is not None:
        what = f"{ref.label} cannot draft: token {id} of its vocabulary is not the model's"
        raise UserError(what, "give --draft a model that was trained with the same tokenizer")
    return DraftModel(load_engine(ref, backend, device=device, threads=threads), target)


def _token(tokenizer: Tokenizer, id: int) -> tuple[bytes, str | None]:
    return tokenizer.token_bytes(id), tokenizer.control_token(id)


def check_vocabulary(ref: ModelRef, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError if the tokenizer has ids for which the model has no embedding."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{ref.path}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model {vocab_size:,}",
            "put the tokenizer that the model was trained with into the folder",
        )

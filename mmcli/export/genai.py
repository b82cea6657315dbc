"""onnxruntime-genai: the configuration that it reads, and an exported folder run in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmcli.data.demo.documents import documents
from mmcli.errors import MmcliError, UserError
from mmcli.export.locate import Ops
from mmcli.generate.engine import Engine
from mmcli.generate.onnx_growing import load_onnx_engine
from mmcli.generate.onnx_session import GRAPH_FILE, INTEGER_PRODUCTS
from mmcli.model.config import ModelConfig
from mmcli.text.chat import stop_ids
from mmcli.text.tokenizer import Tokenizer

PROMPT_TOKENS, NEW_TOKENS = 24, 32
TEXT_SEED = 1  # documents that training on the built-in corpus does not read
TIE = 1e-3  # two tokens whose logits are nearer than this are a tie


def genai_config(config: ModelConfig, tokenizer: Tokenizer, ops: Ops) -> dict[str, Any]:
    """What onnxruntime-genai reads to run the folder."""
    ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    key, level = INTEGER_PRODUCTS
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], key: level},
        "filename": GRAPH_FILE,
        "head_size": config.d_head,
        "hidden_size": config.dim,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "num_hidden_layers": config.n_layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": config.max_seq_len,
            **{name: id for name, id in ids.items() if id is not None},
            "eos_token_id": sorted(stop_ids(tokenizer)),
            "decoder": decoder,
        },
        "search": {"max_length": config.max_seq_len, "do_sample": False, "past_present_share_buffer": ops == "fused"},
    }


def refuse_missing() -> None:
    """Raise UserError unless onnxruntime-genai is installed."""
    try:
        import onnxruntime_genai  # noqa: F401
    except ImportError:
        what = "--target genai runs the export in onnxruntime-genai, which is not installed"
        raise UserError(what, "install it: pip install 'mmcli[genai]'") from None


def compare_with_genai(folder: Path) -> None:
    """Run the export in onnxruntime-genai: the ids of a text and greedy tokens must be those of mmcli's own engine.

    Raises:
        UserError: onnxruntime-genai is not installed.
        MmcliError: it cannot load the folder, or reads or writes other tokens.
    """
    refuse_missing()
    import onnxruntime_genai as genai

    tokenizer = Tokenizer.load(folder)
    text = next(documents(TEXT_SEED))
    ids = tokenizer.encode_text(text)
    engine = load_onnx_engine(folder, max_len=None)
    prompt = ids[: min(PROMPT_TOKENS, engine.max_len // 2)]
    length = min(len(prompt) + NEW_TOKENS, engine.max_len)
    try:
        loaded = genai.Model(str(folder))
        read = [int(id) for id in genai.Tokenizer(loaded).encode(text)]
        found = _greedy(genai, loaded, prompt, length)
    except (RuntimeError, TypeError, ValueError) as error:  # what its C++ raises
        raise _refusal(f"does not run the export: {str(error).splitlines()[0]}") from None
    if read[read[:1] == [tokenizer.bos_id] :] != ids:
        raise _refusal("encodes text as other tokens than mmcli")
    _compare(engine, prompt, found)


def _greedy(genai: Any, model: Any, prompt: Sequence[int], length: int) -> list[int]:
    """The tokens that onnxruntime-genai writes after the prompt, up to a stop token or `length` in all."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, dtype=np.int32))
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def _compare(engine: Engine, prompt: Sequence[int], found: Sequence[int]) -> None:
    logits_V = engine.prefill(0, prompt)
    for number, token in enumerate(found, start=1):
        expected = int(logits_V.argmax())
        if token != expected:
            if not logits_V[expected] - logits_V[token] <= TIE:
                raise _refusal(f"writes another greedy token than mmcli, at {number} of {len(found)}")
            return  # a tie: the texts part here
        if number < len(found):
            logits_V = engine.decode([0], [token])[0]


def _refusal(reason: str) -> MmcliError:
    fix = "nothing was kept; export it with --target cpu, or update onnxruntime-genai"
    return MmcliError(f"onnxruntime-genai {reason}", fix)

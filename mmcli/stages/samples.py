"""Sample texts of a model in training."""

from __future__ import annotations

from typing import Any

from mmcli.data.pack.batches import NO_LABEL, make_batch
from mmcli.generate.generate import generate
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.stages.start import Start
from mmcli.stages.tokens import Sample, TokenRows
from mmcli.text.chat import stop_ids

SAMPLE_TOKENS = 40
CUT = "\ufffd"  # what the first bytes of a character decode to


def continuations(start: Start, rows: TokenRows, seed: int, *, prompt_tokens: int | None) -> Sample:
    """Continue the first document of a held-out row (of a training row, if nothing is held out).

    Args:
        prompt_tokens: how much of it the model is given; None: up to the first token that is trained (a question).
    """
    cache, packed = (rows.val_cache, rows.val) if rows.val is not None else (rows.cache, rows.train)
    tokenizer = start.tokenizer
    stop = stop_ids(tokenizer)

    def sample(model: Any, step: int) -> list[tuple[str, str]]:
        row = make_batch(cache, packed, [step % len(packed)])
        length = prompt_tokens
        if length is None:
            length = int((row.labels_BT[0] != NO_LABEL).argmax()) + 1
        limit = model.config.max_seq_len
        length = min(length, int((row.segments_BT[0] == 0).sum()), limit - 1)
        prompt = row.ids_BT[0, :length].tolist()
        while len(prompt) > 1 and tokenizer.decode(prompt).endswith(CUT):
            prompt.pop()  # the beginning of a character
        engine = TorchEngine(model, max_len=min(length + SAMPLE_TOKENS, limit))
        sampling = SamplingConfig(temperature=0.7, seed=seed)
        ids = list(generate(engine, 0, prompt, sampling, max_new_tokens=SAMPLE_TOKENS, stop_ids=stop))
        return [(tokenizer.decode(prompt), tokenizer.decode(ids).rstrip(CUT))]

    return sample

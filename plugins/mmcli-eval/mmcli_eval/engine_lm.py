"""mmcli's engine as a model of lm-evaluation-harness: log-likelihoods in batches, replies on all slots.

B rows, T tokens in a row, N predicted tokens of a row, D width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mmcli.api import (
    Batch,
    ModelRef,
    Reporter,
    SamplingConfig,
    Silent,
    TokenBatch,
    Tokenizer,
    TorchEngine,
    UserError,
    encode_chat,
    generate_batch,
    load_engine,
    read_reply,
    stop_ids,
)

SLOTS = 32  # replies that are written at a time
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}  # of one forward pass, padding counted
CHUNK_TOKENS = 512  # whose logits are in memory together
MAX_NEW_TOKENS = 256  # of a reply, where a task does not say

Request = tuple[Any, Sequence[int], Sequence[int]]  # what was asked, ids of the context, ids that are scored
Row = tuple[tuple[int, ...], int]  # ids that are read, how many of what follows them is scored


class EngineLM(TemplateLM):
    """A model as lm_eval asks it."""

    def __init__(
        self,
        engine: TorchEngine,
        tokenizer: Tokenizer,
        *,
        chat: bool = False,
        bos: bool = True,
        batch_tokens: int | None = None,
        report: Reporter | None = None,
    ) -> None:
        """
        Args:
            chat: prompts are conversations in the model's chat template.
            bos: a text begins with the bos token where the tokenizer has one, as a document does in training.
            batch_tokens: tokens of one forward pass, padding counted; None: what the device takes well.
        """
        super().__init__()
        self.engine, self.mm_tokenizer, self.chat = engine, tokenizer, chat
        self._begin = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(engine.device.type, 2048)
        self.report = report or Silent()
        self._chats: dict[str, list[int]] = {}  # a conversation as text -> its ids, control tokens among them

    @classmethod
    def load(cls, ref: ModelRef, *, device: str, chat: bool, bos: bool, report: Reporter) -> EngineLM:
        """The model that a person named, on its engine.

        Raises:
            UserError: no such device.
        """
        engine = load_engine(ref, slots=SLOTS, device=device, report=report)
        assert isinstance(engine, TorchEngine)
        return cls(engine, Tokenizer.load(ref.path), chat=chat, bos=bos, report=report)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ids = self.mm_tokenizer
        return ids.eos_id if ids.eos_id is not None else ids.pad_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text."""
        bos = self.mm_tokenizer.bos_id
        return bos if bos is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        """Tokens of the context."""
        return self.engine.max_len

    @property
    def tokenizer_name(self) -> str:
        """Under which lm_eval keeps prompts."""
        return self.mm_tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, with its bos unless that is not wanted; of a conversation, those of its template."""
        if string in self._chats:
            return list(self._chats[string])
        return [*(self._begin if add_special_tokens is not False else []), *self.mm_tokenizer.encode_text(string)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context in self._chats:
            return list(self._chats[context]), self.mm_tokenizer.encode_text(continuation)
        pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        return pair

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; its ids are kept, so that no text becomes a control token.

        Raises:
            UserError: the template does not take it, or the task begins the reply itself.
        """
        if not add_generation_prompt:
            raise UserError("a task that begins the reply itself cannot be asked as chat", "leave chat=true out")
        ids = encode_chat(self.mm_tokenizer, chat_history, add_generation_prompt=True).ids
        text = json.dumps(chat_history, ensure_ascii=False)
        self._chats[text] = ids
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's name for lm_eval's records."""
        return "mmcli" if chat_template else None

    # Log-likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether it is what greedy decoding writes) of each (context, continuation)."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """log p of each text, in windows of the whole context: every token is predicted once."""
        windows: list[Request] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.mm_tokenizer.encode_text(request.args[0])
            found = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, found):
                windows.append((None, *window))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[number] += score
        return sums

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        rows: dict[Row, list[int]] = {}  # -> the requests that share its logits: they differ in the last token alone
        for number, (_asked, context, scored) in enumerate(requests):
            if not 0 < len(scored) <= self.max_length:
                what = f"a continuation of {len(scored):,} tokens, and a context of {self.max_length:,}"
                raise UserError(what, "measure a task with shorter ones, or a model with a longer context")
            ids = (*context, *scored)[-(self.max_length + 1) : -1]
            rows.setdefault((ids, len(scored)), []).append(number)
        found: dict[int, tuple[float, bool]] = {}
        for part in self._parts(sorted(rows, key=lambda row: -len(row[0]))):
            hidden_BTD = self._hidden([ids for ids, _ in part])
            for hidden_TD, (ids, count) in zip(hidden_BTD, part, strict=True):
                numbers = rows[ids, count]
                labels_MN = torch.tensor([requests[number][2] for number in numbers], device=hidden_TD.device)
                found.update(zip(numbers, self._score(hidden_TD[len(ids) - count : len(ids)], labels_MN), strict=True))
            self.report.progress("log-likelihood", len(found), len(requests), "requests")
        return [found[number] for number in range(len(requests))]

    def _parts(self, rows: list[Row]) -> Iterator[list[Row]]:
        """As many rows as make a batch, the longest first."""
        while rows:
            size = max(1, self.batch_tokens // max(1, len(rows[0][0])))
            yield rows[:size]
            rows = rows[size:]

    def _hidden(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """hidden_BTD after each of the ids, padding at the end of the shorter rows."""
        shape = (len(rows), max(map(len, rows)))
        ids_BT = np.full(shape, self.mm_tokenizer.pad_id, dtype=np.int64)
        segments_BT = np.full(shape, -1, dtype=np.int64)
        for row, ids in enumerate(rows):
            ids_BT[row, : len(ids)], segments_BT[row, : len(ids)] = ids, 0
        positions_BT = np.where(segments_BT == 0, np.arange(shape[1]), 0)
        unlabelled_BT = np.full(shape, -100, dtype=np.int64)
        model = self.engine.model
        batch = TokenBatch.from_batch(Batch(ids_BT, unlabelled_BT, positions_BT, segments_BT), model.config)
        on_device = batch.to(self.engine.device)
        hidden_BTD: torch.Tensor = model(on_device.ids_BT, on_device.ctx)[0]
        return hidden_BTD

    def _score(self, hidden_ND: torch.Tensor, labels_MN: torch.Tensor) -> list[tuple[float, bool]]:
        """(sum of log p, whether each is the likeliest) of M continuations of one context."""
        model = self.engine.model
        sums_M = torch.zeros(len(labels_MN), dtype=torch.float64)  # on the host: MPS has no fp64
        likeliest_M = torch.ones(len(labels_MN), dtype=torch.bool, device=labels_MN.device)
        for first in range(0, len(hidden_ND), CHUNK_TOKENS):
            part = slice(first, first + CHUNK_TOKENS)
            logits_NV = F.linear(hidden_ND[part], model.head_weight, model.head_bias).float()
            labels_NM = labels_MN[:, part].T
            sums_M += logits_NV.log_softmax(dim=-1).gather(1, labels_NM).cpu().double().sum(dim=0)
            likeliest_M &= (logits_NV.argmax(dim=-1, keepdim=True) == labels_NM).all(dim=0)
        return list(zip(sums_M.tolist(), likeliest_M.tolist(), strict=True))

    # Replies

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The continuation of each context up to a stop text, greedy or drawn, on all slots at a time."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        written: dict[int, str] = {}
        for numbers in groups.values():
            for number, text in self._write([requests[n].args[0] for n in numbers], requests[numbers[0]].args[1]):
                written[numbers[number]] = text
                self.report.progress("replies", len(written), len(requests), "requests")
        return [written[number] for number in range(len(requests))]

    def _write(self, contexts: Sequence[str], asked: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
        """(number, text) of each context, as they end."""
        settings = normalize_gen_kwargs(dict(asked), MAX_NEW_TOKENS)
        until = [settings["until"]] if isinstance(settings.get("until"), str) else list(settings.get("until") or ())
        count = int(settings["max_gen_toks"])
        if not 0 < count < self.max_length:
            what = f"{count:,} new tokens leave no place for a question in a context of {self.max_length:,}"
            raise UserError(what, f"add --max-new-tokens {max(1, self.max_length // 2)}")
        sampling = SamplingConfig(
            temperature=float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0,
            top_p=float(settings.get("top_p", 1.0)),
            top_k=int(settings.get("top_k", 0)),
            repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
        )
        tokenizer = self.mm_tokenizer
        stops = set(stop_ids(tokenizer))
        ends = [text.encode() for text in until if text]
        stops |= {id for id in range(tokenizer.vocab_size) if any(end in tokenizer.token_bytes(id) for end in ends)}
        prompts = [self.tok_encode(context)[-(self.max_length - count) :] for context in contexts]
        for each in generate_batch(self.engine, prompts, sampling, max_new_tokens=count, stop_ids=stops):
            last = [] if each.stop_id is None else [each.stop_id]
            if self.chat:
                text = str(read_reply(tokenizer, [*each.ids, *last])["content"])
            else:
                text = tokenizer.decode([*each.ids, *last])
            cuts = [text.find(end) for end in until if end and end in text]
            yield each.prompt, text[: min(cuts, default=len(text))]

"""Replies: tool rounds written by a script, randomness of (seed, step, sample), prompts of a step, what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcli_grpo import GrpoConfig
from mmcli_grpo.experience import Experience, path_of, remove_old
from mmcli_grpo.loss import VARIANTS, advantages, reply_logps
from mmcli_grpo.prompts import Prompt, PromptOrder, read_prompt, split_prompts
from mmcli_grpo.rollout import Limits, Writer, sample_seed
from mmcli_grpo.tools import BUILT_IN

from mmcli.api import (
    DataConfig,
    ModelConfig,
    Record,
    RecordError,
    Run,
    SamplingConfig,
    Tokenizer,
    TorchEngine,
    Transformer,
    UserError,
    encode_chat,
    resolve,
    stop_ids,
    train_tokenizer,
)

TOOLS = [{"type": "function", "function": {"name": "calculator", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"name": "calculator", "arguments": {"expression": "2 * 3"}}
CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=400, max_seq_len=512)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["What is 2 * 3? It is 6. calculator expression tool"] * 9, vocab_size=400)


def prompt(tokenizer: Tokenizer, text: str = "What is 2 * 3?", answer: str = "2 * 3 = 6") -> Prompt:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return read_prompt(Record("talk.jsonl", 1, {"messages": messages, "tools": TOOLS}), tokenizer)


class Script:
    """An engine of one slot whose model writes given turns, one after the other."""

    slots = 1

    def __init__(self, turns: Sequence[Sequence[int]], vocab_size: int, max_len: int = 1024) -> None:
        self._turns, self._place = list(turns), 0
        self.vocab_size, self.max_len = vocab_size, max_len
        self.ids: list[int] = []

    def prefill(self, slot: int, ids: Sequence[int]) -> np.ndarray:
        self._place = 0
        return self._next(ids)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        return self._next(ids)[None]

    def length(self, slot: int) -> int:
        return len(self.ids)

    def truncate(self, slot: int, n: int) -> None:
        del self.ids[n:]

    def copy(self, source: int, target: int) -> None: ...

    def _next(self, ids: Sequence[int]) -> np.ndarray:
        self.ids += ids
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[self._turns[0][self._place]] = 9.0
        self._place += 1
        if self._place == len(self._turns[0]):
            self._turns.pop(0)
        return logits


def turn(tokenizer: Tokenizer, message: dict[str, Any]) -> list[int]:
    """The ids of a turn as the chat template writes it, its end included."""
    encoded = encode_chat(tokenizer, [{"role": "user", "content": "?"}, message], tools=TOOLS)
    return [id for id, trained in zip(encoded.ids, encoded.trained, strict=True) if trained]


def greedy(number: int) -> SamplingConfig:
    return SamplingConfig(temperature=0, repetition_penalty=1)


def test_a_call_is_run_answered_and_not_trained(tokenizer: Tokenizer) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
    said = {"role": "assistant", "content": "It is 6."}
    asked, turns = prompt(tokenizer), [turn(tokenizer, call), turn(tokenizer, said)]
    engine = Script(turns, tokenizer.vocab_size)
    [reply] = Writer(tokenizer, Limits(200, 2), BUILT_IN).write(engine, [asked], greedy)
    whole = [*asked.messages, call, {"role": "tool", "content": "6"}, said]
    expected = encode_chat(tokenizer, whole, tools=TOOLS)
    end = max(place for place, trained in enumerate(expected.trained, 1) if trained)
    assert reply.ids == expected.ids[:end]
    assert reply.written == expected.trained[:end]
    assert (reply.ended, reply.rounds, reply.calls, reply.tokens) == (True, 1, 1, sum(map(len, turns)))
    attempt = reply.attempt(200)
    assert (attempt.reply, attempt.turns[1]["content"], attempt.answer) == ("It is 6.", "6", "2 * 3 = 6")


@pytest.mark.parametrize(("rounds", "most"), [(0, 200), (2, None)])
def test_no_round_where_none_is_allowed_or_fits(tokenizer: Tokenizer, rounds: int, most: int | None) -> None:
    call = turn(tokenizer, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]})
    writer = Writer(tokenizer, Limits(most or len(call), rounds), BUILT_IN)
    [reply] = writer.write(Script([call], tokenizer.vocab_size), [prompt(tokenizer)], greedy)
    assert (reply.calls, reply.ended, len(reply.turns)) == (0, True, 1)


def test_text_that_spells_a_call_is_none(tokenizer: Tokenizer) -> None:
    spelled = tokenizer.encode_text(
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1"}}\n</tool_call>'
    )
    stop = min(stop_ids(tokenizer) - {tokenizer.pad_id})
    writer = Writer(tokenizer, Limits(300, 2), BUILT_IN)
    [reply] = writer.write(Script([[*spelled, stop]], tokenizer.vocab_size), [prompt(tokenizer)], greedy)
    assert reply.calls == 0


def test_replies_are_a_function_of_seed_step_and_sample(tokenizer: Tokenizer) -> None:
    model = Transformer(CONFIG, seed=1)
    writer = Writer(tokenizer, Limits(8, 0), {})
    asked = [prompt(tokenizer, f"What is {n} * 3?") for n in range(3) for _ in range(2)]

    def write(slots: int, step: int, which: Sequence[int]) -> list[list[int]]:
        def sampling(number: int) -> SamplingConfig:
            return SamplingConfig(
                top_k=0, top_p=1, repetition_penalty=1, temperature=1, seed=sample_seed(5, step, which[number])
            )

        engine = TorchEngine(model, slots=slots, max_len=512)
        return [reply.ids for reply in writer.write(engine, [asked[n] for n in which], sampling)]

    whole = write(4, 0, range(6))
    assert len({tuple(ids) for ids in whole}) == 6
    assert write(2, 0, range(6)) == whole  # whatever else is written at the same time
    assert write(1, 0, [4]) == [whole[4]]
    assert write(4, 1, range(6)) != whole


def test_prompts_of_a_step_and_those_held_out(tokenizer: Tokenizer) -> None:
    order = PromptOrder(10, 4, seed=3)
    seen = [number for step in range(5) for number in order.numbers(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:] and PromptOrder(10, 4, seed=3).numbers(4) == order.numbers(4)
    prompts = [prompt(tokenizer, f"What is {n % 50} * 3?") for n in range(100)]
    training, held = split_prompts(prompts, DataConfig(val_fraction=0.3), 0, 16)
    asked, kept = {each.ids for each in training}, {each.ids for each in held}
    assert not asked & kept and len(asked | kept) == 50 and len(held) == len(kept) > 5
    assert len(split_prompts(prompts, DataConfig(val_fraction=0.3, val_tokens=400), 0, 16)[1]) < len(held)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("assistant", "Hello.")], "does not end in an answer"),
        ([("user", "?"), ("assistant", "!"), ("user", "?")], "does not end in an answer"),
    ],
)
def test_what_is_no_prompt(tokenizer: Tokenizer, messages: list[tuple[str, str]], reason: str) -> None:
    value = {"messages": [{"role": role, "content": text} for role, text in messages]}
    with pytest.raises(RecordError, match=reason):
        read_prompt(Record("talk.jsonl", 1, value), tokenizer)


def experience(step: int = 4) -> Experience:
    ids = [np.arange(5), np.arange(9), np.arange(4)]
    written = [np.arange(len(each)) > 2 for each in ids]
    old = [np.linspace(-1, 0, len(each) - 1, dtype=np.float32) for each in ids]
    return Experience(step, ids, written, np.array([1.0, -1.0, 0.5], np.float32), {"reward": (2.0, 4.0)}, old=old)


def test_replies_are_kept_whole_and_removed_when_no_checkpoint_needs_them(tmp_path: Path) -> None:
    run = Run(tmp_path / "0001-grpo-x")
    run.checkpoints.mkdir(parents=True)
    folder = tmp_path / "rollouts"
    for step in (0, 2, 4):
        experience(step).save(folder)
    found = Experience.load(folder, 4)
    assert found is not None and (found.step, found.told) == (4, {"reward": (2.0, 4.0)})
    for name in ("ids", "written", "old"):
        kept, made = getattr(found, name), getattr(experience(), name)
        assert all(np.array_equal(a, b) for a, b in zip(kept, made, strict=True)), name
    assert np.array_equal(found.advantages, experience().advantages) and not len(found.reference)
    remove_old(folder, run, 2)
    assert len(list(folder.iterdir())) == 3
    (run.checkpoints / "step-000003").mkdir()
    remove_old(folder, run, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002.safetensors", "step-000004.safetensors"]
    path_of(folder, 2).write_bytes(b"cut")
    assert Experience.load(folder, 2) is Experience.load(folder, 6) is None


def test_micro_batches_hold_every_reply_once_and_count_its_written_tokens() -> None:
    made = experience()
    parts = made.parts(10)
    assert [[row.replies for row in part] for part in parts] == [[[2]], [[0, 1]]]  # one prompt, room for two replies
    batches = [made.batch(part, CONFIG, 0, VARIANTS["dapo"], tells=n == 0, pin=False) for n, part in enumerate(parts)]
    assert [batch.counts["policy_loss"] for batch in batches] == [1.0, 8.0]
    assert [bool(batch.told) for batch in batches] == [True, False]
    assert batches[0].rows.rows.ctx.branches_BT is None
    second = batches[1]
    rows = second.rows.rows
    assert rows.ids_BT.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5, 6, 7]]
    assert rows.labels_BT.tolist() == [[-100, -100, 3, 4, 3, 4, 5, 6, 7, 8]]
    assert rows.ctx.positions_BT.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5, 6, 7]]
    assert rows.ctx.branches_BT is not None
    assert rows.ctx.branches_BT.tolist() == [[0, 0, 1, 1, 2, 2, 2, 2, 2, 2]]
    assert second.rows.shape == (2, 8) and second.rows.places_N.tolist() == [2, 3, *range(10, 16)]
    assert second.advantages_B.tolist() == [1.0, -1.0]
    assert second.old_BT is not None and second.old_BT[0].tolist() == [
        -1.0,
        *np.linspace(-1, 0, 4, dtype=np.float32)[1:],
        0.0,
        0.0,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize("least", [1, 2, 3, 5])
def test_every_rank_has_a_micro_batch(least: int) -> None:
    parts = experience().parts(100, least=least)
    assert len(parts) == min(least, 3)
    assert sorted(n for part in parts for row in part for n in row.replies) == [0, 1, 2]


SHAPES = {
    "llama": {},
    "qwen3, bf16": {"qk_norm": True},
    "plain attention": {"flash_attn": False},
    "window": {"sliding_window": 6},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "bias": True},
    "experts": {"use_moe": True},
}


@pytest.mark.parametrize("width", [6, 12, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_replies_behind_one_prompt_are_read_as_each_alone(shape: str, width: int) -> None:
    """A row of 6 tokens has room for one reply, one of 64 for the whole group."""
    draws = np.random.default_rng(0)
    prompts = [draws.integers(0, 300, length) for length in (5, 8)]
    replies = [np.concatenate([prompts[n // 5], draws.integers(0, 300, 1 + n % 4)]) for n in range(10)]
    written = [np.arange(len(ids)) >= len(prompts[n // 5]) for n, ids in enumerate(replies)]
    written[3][-2] = False  # as the result of a tool is
    values: dict[str, Any] = {**SHAPES[shape], "max_seq_len": 64, "init_std": 0.1}
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, **values)
    model = Transformer(config).train()
    made = Experience(0, replies, written, np.ones(10, dtype=np.float32), {})

    def gradients(chosen: Sequence[Experience], most: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        logps: list[torch.Tensor] = []
        for each in chosen:
            each_logps: dict[int, torch.Tensor] = {}
            for part in each.parts(most):
                rows = each.layout(part, config, 0, pin=False)
                with torch.autocast("cpu", enabled="bf16" in shape):
                    logps_BT, mask_BT, _ = reply_logps(model, rows, 1.3)
                assert not logps_BT[mask_BT == 0].any()
                numbers = [n for row in part for n in row.replies]
                each_logps |= {n: logps_BT[b][mask_BT[b] == 1] for b, n in enumerate(numbers)}
            logps += [each_logps[n] for n in range(len(each))]
        weighted = sum((n + 1) * each.sum() for n, each in enumerate(logps))
        assert isinstance(weighted, torch.Tensor)
        return logps, list(torch.autograd.grad(weighted, [*model.model.layers.parameters()], allow_unused=True))

    single = [
        Experience(0, [ids], [own], np.ones(1, dtype=np.float32), {}) for ids, own in zip(replies, written, strict=True)
    ]
    together, alone = gradients([made], width), gradients(single, 64)
    rows = [row for part in made.parts(width) for row in part]
    assert len(rows) == {6: 10, 12: 5, 64: 2}[width]
    loose = {"rtol": 0.1, "atol": 0.05} if "bf16" in shape else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(together[0], alone[0], **loose)
    if "bf16" not in shape:
        for one, other in zip(together[1], alone[1], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_equal_rewards_teach_nothing() -> None:
    assert not advantages(torch.full((2, 4), 0.7), scaled=True).any()
    assert math.isfinite(float(advantages(torch.tensor([[0.0, 1e-12]]), scaled=True).sum()))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"group_size": 1}, "group_size = 1 is below 2"),
        ({"updates": 0}, "updates = 0 is below 1"),
        ({"temperature": 0.0}, "temperature = 0.0 is not positive"),
        ({"kl_coef": -0.1}, "kl_coef = -0.1 is negative"),
        ({"clip_low": 2.0}, "clip_low = 2.0 is not in 0 to 1"),
        ({"clip_high": 0.0}, "clip_high = 0.0 is not positive"),
        ({"clip_low": 0.1, "loss": "cispo"}, "cispo has no lower bound"),
        ({"reward": []}, "reward is empty"),
    ],
)
def test_values_that_do_not_work(values: dict[str, Any], said: str) -> None:
    from mmcli.config import Layer

    with pytest.raises(UserError) as caught:
        resolve(GrpoConfig, [Layer("test", values)])
    assert said in caught.value.what and caught.value.fix

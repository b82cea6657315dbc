"""Best-of-n: replies as their seeds write them alone; the one with the highest reward stays in the conversation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmcli.errors import MmcliError, UserError
from mmcli.generate.best_of import BestOf
from mmcli.generate.conversation import Conversation
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.torch_engine import TorchEngine
from mmcli.model.config import ModelConfig
from mmcli.model.transformer import Transformer
from mmcli.rewards import Attempt
from mmcli.text.tokenizer import Tokenizer

WARM = SamplingConfig(temperature=1.5, seed=7)


def engine(tokenizer: Tokenizer, slots: int) -> TorchEngine:
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": tokenizer.vocab_size, "max_seq_len": 256}
    return TorchEngine(Transformer(ModelConfig(**shape, init_std=0.1)), slots=slots)  # type: ignore[arg-type]


def talk(tokenizer: Tokenizer, best_of: BestOf | None = None, *, seed: int = 7) -> Conversation:
    sampling, slots = dataclasses.replace(WARM, seed=seed), 1 if best_of is None else best_of.n
    return Conversation(
        engine(tokenizer, slots), tokenizer, sampling=sampling, max_new_tokens=10, system="Hi.", best_of=best_of
    )


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.reply(text))


def test_the_reply_with_the_highest_reward_is_kept(tokenizer: Tokenizer) -> None:
    attempts: list[Attempt] = []

    def reward(attempt: Attempt) -> float:
        attempts.append(attempt)
        return 1.0 - abs(len(attempts) - 3.0)  # the third of four

    conversation = talk(tokenizer, BestOf(4, reward))
    said = say(conversation, "Hello")
    alone = [say(talk(tokenizer, seed=seed), "Hello") for seed in (7, 8, 9, 10)]
    assert [attempt.reply for attempt in attempts] == [text.strip() for text in alone] and len(set(alone)) == 4
    assert said == alone[2] == conversation.messages[-1]["content"]
    assert conversation.rewards == [-1.0, 0.0, 1.0, 0.0]
    assert conversation.notice == "best of 4: reward 1, the lowest -1"
    assert [dict(each) for each in attempts[0].prompt] == [
        {"role": "system", "content": "Hi."},
        {"role": "user", "content": "Hello"},
    ]
    assert attempts[0].max_new_tokens == 10 and 0 < attempts[0].tokens <= 10
    stats = conversation.stats
    assert stats is not None and stats.time_to_first_token == stats.seconds

    list(conversation.reply("And?"))  # answered from the reply that was kept
    assert attempts[4].prompt[2]["content"] == said
    list(conversation.retry())
    fifth, ninth = attempts[4:8], attempts[8:12]
    assert not {each.reply for each in fifth} & {each.reply for each in ninth}  # a retry has seeds of its own


def test_what_cannot_choose_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="the best of 1 replies"):
        BestOf(1, lambda attempt: 0.0)
    conversation = talk(tokenizer, BestOf(2, lambda attempt: float("nan")))
    with pytest.raises(MmcliError, match="the reward of a reply is nan"):
        say(conversation, "Hello")
    assert conversation.messages == []

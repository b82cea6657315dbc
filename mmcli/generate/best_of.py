"""Best-of-n sampling: several replies to a prompt are written together, and the one with the highest reward is kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mmcli.errors import MmcliError, UserError
from mmcli.generate.engine import Engine
from mmcli.generate.generate import Generation
from mmcli.generate.grammar import Grammar
from mmcli.generate.sampler import SamplingConfig
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.step import run_sequences
from mmcli.rewards import Attempt, RewardFunction


@dataclass(frozen=True)
class BestOf:
    """How many replies are written, and what scores them.

    Raises:
        UserError: fewer than two replies.
    """

    n: int
    reward: RewardFunction

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UserError(f"the best of {self.n} replies", "write 2 or more, such as --best-of 8")

    def write(
        self,
        engine: Engine,
        prompt_ids: Sequence[int],
        sampling: SamplingConfig,
        attempt: Callable[[TokenSequence], Attempt],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int] = (),
        grammar: Grammar | None = None,
    ) -> tuple[Generation, list[float]]:
        """(the best reply; the rewards of all of them). What the slots hold afterwards is not said.

        Reply i has the seed `sampling.seed` + i; of equal rewards the first one wins.

        Args:
            engine: of `n` slots or more; whatever they hold is dropped.
            attempt: a reply that is written, as the reward gets it.

        Raises:
            PromptTooLong: the prompt leaves no place in the context.
            MmcliError: a reward that is no finite number, or logits that are not finite.
        """
        assert engine.slots >= self.n, f"{engine.slots} slots for {self.n} replies"
        started = time.perf_counter()
        sequences = [
            TokenSequence(
                prompt_ids,
                dataclasses.replace(sampling, seed=(sampling.seed + i) % 2**64),
                max_new_tokens=max_new_tokens,
                max_len=engine.max_len,
                stop_ids=stop_ids,
                grammar=grammar,
            )
            for i in range(self.n)
        ]
        for _ in run_sequences(engine, enumerate(sequences)):
            pass
        rewards = [float(self.reward(attempt(sequence))) for sequence in sequences]
        if not all(map(math.isfinite, rewards)):
            what = f"the reward of a reply is {next(each for each in rewards if not math.isfinite(each))}"
            raise MmcliError(what, "give a --reward that returns a finite number")
        best = max(range(self.n), key=lambda i: rewards[i])
        return Generation.of_written(engine, 0, sequences[best], time.perf_counter() - started), rewards

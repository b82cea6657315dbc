"""The work of `mmcli grpo`: replies written before a step, scored, compared within their groups, trained on.

Shapes: P prompts of a step, G replies to each, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcli.api import (
    Engine,
    Metric,
    Rollouts,
    SamplingConfig,
    StageContext,
    Start,
    StepBatch,
    Task,
    TorchEngine,
    choose_micro_batch,
    open_data,
    pin_data,
    prepare_start,
    save_adapter,
    save_into,
    train,
)
from mmcli_grpo import GrpoConfig
from mmcli_grpo.experience import Experience, Row, remove_old
from mmcli_grpo.inputs import open_reference, pin_files
from mmcli_grpo.loss import VARIANTS, Objective, ReplyRows, advantages, grpo_loss, reply_logps
from mmcli_grpo.prompts import Prompt, PromptData, PromptOrder, open_prompts
from mmcli_grpo.rewards import WeightedReward, load_rewards, score_all
from mmcli_grpo.rollout import Limits, Reply, Writer, sample_seed
from mmcli_grpo.tools import load_tools

FOLDER = "rollouts"  # of a run: replies that several steps train on
SAMPLES = 2  # held-out prompts whose replies are shown
GREEDY = SamplingConfig(temperature=0, top_k=0, top_p=1, repetition_penalty=1)


def run(config: GrpoConfig, context: StageContext) -> dict[str, Any]:
    """Train on replies to prompts; the totals of the run.

    Raises:
        UserError: data, model, rewards or tools cannot be used.
    """
    files = pin_files(config, context)
    rewards, tools = load_rewards(files["reward"]), load_tools(files["tool"])
    data = open_data("chat", pin_data(config.data, context.run))
    start = prepare_start(None, data, config.train, context)
    longest = config.data.seq_len - 1
    reply_tokens = min(config.max_new_tokens, config.data.seq_len)
    prompts = open_prompts(data, start.tokenizer, config.train.seed, longest, reply_tokens, context.report)
    context.run.update(
        data={"sources": list(config.data.sources), "kind": "chat", "kept": len(prompts.training)},
    )
    writer = Writer(start.tokenizer, Limits(config.max_new_tokens, config.tool_rounds), tools)
    reference = open_reference(config, start, context)
    sequences = replace(config.train, batch_size=config.train.batch_size * config.group_size)
    micro_batch = choose_micro_batch(sequences, start.model.config, config.data.seq_len, start.accelerator, context)
    learner = Learner(config, context, start, prompts, rewards, writer, micro_batch, reference)
    return train(learner.task(), config.optim, config.train, context)


def objective_of(config: GrpoConfig) -> Objective:
    """The variant that was asked for, with the numbers that were."""
    objective = VARIANTS[config.loss]
    return replace(
        objective,
        clip_low=config.clip_low if config.clip_low is not None else objective.clip_low,
        clip_high=config.clip_high if config.clip_high is not None else objective.clip_high,
        kl_coef=config.kl_coef,
        max_new_tokens=config.max_new_tokens,
    )


@dataclass
class Learner:
    """Writes replies, and makes the micro-batches of each step from them."""

    config: GrpoConfig
    context: StageContext
    start: Start
    prompts: PromptData
    rewards: Sequence[WeightedReward]
    writer: Writer
    micro_batch: Any  # sequences of `seq_len` tokens in a forward pass
    reference: nn.Module | None
    objective: Objective = field(init=False)
    order: PromptOrder = field(init=False)
    newest: Experience | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.objective = objective_of(self.config)
        self.order = PromptOrder(len(self.prompts.training), self.config.train.batch_size, self.config.train.seed)

    def task(self) -> Task:
        """The task of the shared loop."""
        config, model = self.config, self.start.model
        held_out = self.prompts.held_out
        steps = len(self.prompts.training) / config.train.batch_size * config.updates
        reply_tokens = min(config.max_new_tokens, config.data.seq_len)
        return Task(
            model=model,
            accelerator=self.start.accelerator,
            rollouts=Rollouts(self.batches, slots=self._slots(self._replies_per_step), max_len=config.data.seq_len),
            loss=lambda model, batch: grpo_loss(
                model, batch, self.start.model.config, self.objective, config.temperature
            ),
            steps_per_epoch=steps,
            flops_per_token=6.0 * sum(parameter.numel() for parameter in model.parameters()),
            save_model=lambda folder: save_into(folder, self.start, self.context),
            save_adapter=lambda: save_adapter(self.start, self.context),
            metrics=self._metrics(),
            evaluate=self.evaluate if held_out else None,
            evaluation_tokens=sum(len(prompt.ids) + reply_tokens for prompt in held_out),
            halve=self.micro_batch.halve,
            describe=lambda step, where: ", ".join(prompt.place for prompt in self._prompts_of(step)[:8]),
            sample=self.sample,
        )

    def batches(self, engine: Engine, step: int) -> Sequence[StepBatch]:
        """The micro-batches of a step: of replies that are written now, or by the step that began this batch."""
        experience = self._experience(engine, step)
        model, pad_id = self.start.model.config, self.start.tokenizer.pad_id
        pin = self.start.accelerator.pins_memory
        return [
            experience.batch(part, model, pad_id, self.objective, tells=number == 0, pin=pin)
            for number, part in enumerate(self._parts(experience))
        ]

    def _parts(self, experience: Experience) -> list[list[Row]]:
        return experience.parts(self._pass_tokens, least=self.context.ranks.world)

    @property
    def _replies_per_step(self) -> int:
        return self.config.train.batch_size * self.config.group_size

    @property
    def _pass_tokens(self) -> int:
        return int(self.micro_batch.size) * self.config.data.seq_len

    def _slots(self, replies: int) -> int:
        return min(self.config.slots, replies)

    def _prompts_of(self, step: int) -> list[Prompt]:
        numbers = self.order.numbers(step // self.config.updates)
        return [self.prompts.training[number] for number in numbers]

    def _experience(self, engine: Engine, step: int) -> Experience:
        updates, folder = self.config.updates, self.context.run.path / FOLDER
        first = step - step % updates
        if updates == 1 or step == first:
            self.newest = self._write(engine, step)
            if updates > 1 and self.context.run.is_writable:
                self.newest.save(folder)
                remove_old(folder, self.context.run, updates)
        elif self.newest is None or self.newest.step != first:
            self.newest = Experience.load(folder, first)
            if self.newest is None:
                self.context.report.warn(
                    f"resumes, not bit-exactly: the replies of step {first} are gone from {folder}; written anew"
                )
                self.newest = replace(self._write(engine, step), step=first)
        return self.newest

    def _write(self, engine: Engine, step: int) -> Experience:
        """Replies to the prompts of a step, with their advantages."""
        config = self.config
        asked = [prompt for prompt in self._prompts_of(step) for _ in range(config.group_size)]

        def sampling(number: int) -> SamplingConfig:
            seed = sample_seed(config.train.seed, step, number)
            return SamplingConfig(temperature=config.temperature, top_k=0, top_p=1, repetition_penalty=1, seed=seed)

        replies = self.writer.write(engine, asked, sampling)
        values = self._score(replies)
        total = self._weighted(values)
        rewards_PG = torch.from_numpy(total).view(-1, config.group_size)
        advantages_N = advantages(rewards_PG, scaled=self.objective.scaled).flatten().float().numpy()
        told = _told(replies, values, rewards_PG, advantages_N)
        differs = (rewards_PG.amax(dim=1) > rewards_PG.amin(dim=1)).repeat_interleave(config.group_size).tolist()
        if not any(differs):  # nothing to learn: one group keeps the step whole, with a gradient of zero
            differs[: config.group_size] = [True] * config.group_size
        kept = [number for number, differ in enumerate(differs) if differ]
        experience = Experience(
            step=step,
            ids=[np.array(replies[number].ids, dtype=np.int64) for number in kept],
            written=[np.array(replies[number].written, dtype=bool) for number in kept],
            advantages=advantages_N[kept],
            told=told,
        )
        if config.updates > 1:
            experience = replace(experience, old=self._logps(self.start.model, experience))
        if config.kl_coef > 0:
            experience = replace(experience, reference=self._reference_logps(experience))
        return experience

    def _score(self, replies: Sequence[Reply]) -> Mapping[str, np.ndarray]:
        attempts = [reply.attempt(self.config.max_new_tokens) for reply in replies]
        return {name: np.array(each) for name, each in score_all(self.rewards, attempts).items()}

    def _weighted(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        total: np.ndarray = sum((each.weight * values[each.name] for each in self.rewards), np.zeros(()))
        return total

    def _logps(self, model: nn.Module, experience: Experience) -> list[np.ndarray]:
        """Log-probabilities of the replies under `model`; gradients are off and autocast is on in a rollout."""

        def logps(rows: ReplyRows) -> Tensor:
            return reply_logps(model, rows.to(self.start.accelerator.device), self.config.temperature)[0]

        return experience.with_logps(
            logps, self._parts(experience), self.start.model.config, self.start.tokenizer.pad_id
        )

    def _reference_logps(self, experience: Experience) -> list[np.ndarray]:
        if self.start.adapter is not None:
            with self.start.adapter.reference(self.start.model):
                return self._logps(self.start.model, experience)
        assert self.reference is not None
        return self._logps(self.reference, experience)

    # Held-out prompts

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The mean reward of the likeliest replies to the held-out prompts."""
        replies = self._greedy(model, self.prompts.held_out)
        values = self._score(replies)
        found = {"val_reward": float(self._weighted(values).mean())}
        return found | {"val_length": float(np.mean([reply.tokens for reply in replies]))}

    def sample(self, model: nn.Module, step: int) -> list[tuple[str, str]]:
        """Questions, and the likeliest replies to them."""
        prompts = self.prompts.held_out or self.prompts.training
        chosen = [prompts[(step + number) % len(prompts)] for number in range(min(SAMPLES, len(prompts)))]
        replies = self._greedy(model, chosen)
        return [
            (str(reply.prompt.messages[-1]["content"]), "\n".join(str(turn["content"]) for turn in reply.turns))
            for reply in replies
        ]

    def _greedy(self, model: Any, prompts: Sequence[Prompt]) -> list[Reply]:
        engine = TorchEngine(model, slots=self._slots(len(prompts)), max_len=self.config.data.seq_len)
        with torch.no_grad(), self.start.accelerator.autocast():
            return self.writer.write(engine, prompts, lambda number: GREEDY)

    def _metrics(self) -> tuple[Metric, ...]:
        several = len(self.rewards) > 1
        return (
            Metric("reward"),
            Metric("val_reward", label="val", higher_is_better=True),
            Metric("length", ".0f", "len"),
            Metric("advantage", ".2f", "adv"),
            *((Metric("kl", ".4f"),) if self.config.kl_coef > 0 else ()),
            *((Metric("clip_share", ".1%", "clip"),) if self.config.updates > 1 else ()),
            *(
                (Metric(f"reward_{each.name}", ".2f", each.name, group="rewards") for each in self.rewards)
                if several
                else ()
            ),
            Metric("entropy", ".2f", group="replies"),
            Metric("flat_groups", ".0%", "flat", group="replies"),
            Metric("cut_off", ".0%", "cut", group="replies"),
        )


def _told(
    replies: Sequence[Reply], values: Mapping[str, np.ndarray], rewards_PG: Tensor, advantages_N: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Sums and counts over all replies of a step, by the name of what is told."""
    count, groups = float(len(replies)), float(len(rewards_PG))
    told = {
        "reward": (float(rewards_PG.sum()), count),
        "length": (float(sum(reply.tokens for reply in replies)), count),
        "advantage": (float(np.abs(advantages_N).sum()), count),
        "reward_std": (float(rewards_PG.std(dim=1).sum()), groups),
        "flat_groups": (float((rewards_PG.amax(dim=1) == rewards_PG.amin(dim=1)).sum()), groups),
        "cut_off": (float(sum(not reply.ended for reply in replies)), count),
        "tool_calls": (float(sum(reply.calls for reply in replies)), count),
    }
    if len(values) > 1:
        told |= {f"reward_{name}": (float(each.sum()), count) for name, each in values.items()}
    return told

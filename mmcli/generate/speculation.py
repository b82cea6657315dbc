"""Lossless speculation: drafted ids are verified in one pass of the model, and the text is the one without them.

The sampler is a function of (logits, seed, position). So the id of every position is drawn from the model's own logits
with the random number of that position, and a draft only says for which ids the pass could be shared: the first one
that differs ends what the pass is good for. Greedy and sampled, the ids are those of decoding one by one, up to the
rounding of a matrix product over several rows. No torch here.
"""

from __future__ import annotations

import time
from collections import deque

from mmcli.errors import UserError
from mmcli.generate.draft import DraftModel
from mmcli.generate.engine import VERIFIED_TOKENS, Engine
from mmcli.generate.lookup import LONGEST, Lookup
from mmcli.generate.sequence import TokenSequence
from mmcli.generate.step import draw, step

DRAFTS = (1, 3, 7, VERIFIED_TOKENS - 1)  # lengths of drafts, few, so that each is measured and its buffers kept
GAIN = 1.05  # expected speed over plain decoding from which a draft is verified
LEAST = 0.05  # a match that is right less often is not looked at
MEMORY = 0.95  # what an older outcome still counts when a new one comes
PRIOR_WEIGHT = 2.0
PRIOR_COST = 0.08  # of one more token in a pass, in passes of one; until it is measured
DRAFT_PRIOR = 0.7  # acceptance of a draft model before it is known
DRAFT_PRIOR_COST = 0.3  # time of a token of the draft model, in tokens of the model
LOSS = 0.02  # share of the time that drafts may cost beyond what they save


class Rate:
    """How often something came true, the newest outcomes above all."""

    def __init__(self, prior: float) -> None:
        self._true, self._all = prior * PRIOR_WEIGHT, PRIOR_WEIGHT
        self.value = prior

    def add(self, came_true: bool) -> None:
        self._true = self._true * MEMORY + came_true
        self._all = self._all * MEMORY + 1
        self.value = self._true / self._all


class Quickest:
    """The least of the newest few times: what else runs on the machine only ever adds to one."""

    def __init__(self, *, warm_up: int = 0) -> None:
        self._times: deque[float] = deque(maxlen=8)
        self._warm_up = warm_up

    def add(self, seconds: float) -> None:
        if self._warm_up:
            self._warm_up -= 1
        else:
            self._times.append(seconds)

    @property
    def seconds(self) -> float | None:
        """None before the first that counts."""
        return min(self._times) if self._times else None


class Speculation:
    """Advances sequences of an engine by several ids a pass, where that is expected to be quicker than one by one.

    It learns as it goes: what a pass over several ids costs, and how often a draft is right, which for the text so far
    is seen without verifying anything. What it has learned serves every later sequence of the engine.

    Attributes:
        passes, accepted: of drafts verified, and the drafted ids among them that were right.
    """

    def __init__(self, engine: Engine, draft: DraftModel | None = None) -> None:
        """Drafts come from the text so far, and from `draft` if there is one.

        Raises:
            UserError: the engine cannot verify several ids in one pass.
        """
        if not engine.can_verify:
            raise UserError(
                "this ONNX export cannot verify drafted tokens: it has the logits of one token only",
                "export it again: mmcli export onnx",
            )
        self.engine = engine
        self.passes = self.accepted = 0
        self._draft_model = draft
        self._lookup: Lookup | None = None
        self._plain = Quickest(warm_up=1)
        self._sampling = Quickest()
        self._passes = {n: Quickest() for n in DRAFTS}
        self._matches = [Rate(length / (length + 8)) for length in range(LONGEST + 1)]
        self._agrees = Rate(DRAFT_PRIOR)
        self._draft_token = Quickest(warm_up=1)
        self._read_token = Quickest()
        self._was_plain = False  # the pass before this one: what a plain pass takes is known as of now
        self._elapsed = 0.0  # seconds
        self._lost = 0.0  # those that the draft model cost beyond what it saved since
        self._lost_by_text = 0.0  # those that drafts from the text cost beyond what they saved, ever

    def advance(self, slot: int, sequence: TokenSequence) -> list[int]:
        """Draw the next ids of a sequence that has not ended, at least one; as `step` does, a stop id included.

        Raises:
            UserError, MmcliError: see `step`.
        """
        if sequence.is_new or self.engine.length(slot) != len(sequence.ids) - 1:
            return [step(self.engine, {slot: sequence})[slot]]
        if self._lookup is None or self._lookup.sequence is not sequence:
            self._lookup = Lookup(sequence)
        start = time.perf_counter()
        place, length = self._lookup.match()
        guess = self._lookup.draft(place, 1)[0] if place else None
        n, gain = self._best_of_text(sequence, length) if place else (0, 1.0)
        n_by_model, gain_by_model = self._best_of_model(sequence)
        drew: list[int]
        self._was_plain = False
        if n_by_model and gain_by_model > gain:
            drew, n = self._by_model(slot, sequence, n_by_model), 0
        elif n:
            drew = self._verify(slot, sequence, self._lookup.draft(place, n), length)
            self._lost_by_text += self._pass_seconds(n) - len(drew) * (self._plain.seconds or 0.0)
        else:
            drew = self._one(slot, sequence)
            self._was_plain = True
        if place and not n:  # what the text would have said is known now, though nothing was verified
            self._matches[length].add(guess == drew[0])
        self._elapsed += time.perf_counter() - start
        return drew

    def _one(self, slot: int, sequence: TokenSequence) -> list[int]:
        """One id by a plain pass."""
        start = time.perf_counter()
        logits_1V = self.engine.decode([slot], sequence.ids[-1:])
        decoded = time.perf_counter()
        id = draw([sequence], logits_1V)[0]
        self._sampling.add(time.perf_counter() - decoded)
        self._plain.add(decoded - start)
        return [id]

    def _verify(self, slot: int, sequence: TokenSequence, drafted: list[int], length: int | None = None) -> list[int]:
        """The ids that a pass over the last id and the drafted ones is good for.

        Args:
            length: of the match that the draft came from; None: it came from the draft model.
        """
        before = len(sequence.ids)
        start = time.perf_counter()
        try:
            logits_TV = self.engine.verify(slot, [sequence.ids[-1], *drafted])
            self._passes[len(drafted)].add(time.perf_counter() - start)
            self.passes += 1
            for number in range(len(drafted) + 1):
                id = draw([sequence], logits_TV[number : number + 1])[0]
                if number == len(drafted):
                    break
                is_right = id == drafted[number]
                rate = self._agrees if length is None else self._matches[min(length + number, LONGEST)]
                rate.add(is_right)
                self.accepted += is_right
                if not is_right or sequence.finish_reason is not None:
                    break
        finally:  # what was rejected leaves the cache, and so does all that an interrupt left unjudged
            self.engine.truncate(slot, min(self.engine.length(slot), len(sequence.ids) - 1))
        return sequence.ids[before:]

    def _by_model(self, slot: int, sequence: TokenSequence, n: int) -> list[int]:
        assert self._draft_model is not None
        start = time.perf_counter()
        unread = self._draft_model.missing(sequence) - 1
        self._draft_model.read(sequence)
        read = time.perf_counter()
        if unread > 0:
            self._read_token.add((read - start) / unread)
        drafted = self._draft_model.draft(sequence, n)
        self._draft_token.add((time.perf_counter() - read) / n)
        drew = self._verify(slot, sequence, drafted)
        plain, sampling = self._plain.seconds or 0.0, self._sampling.seconds or 0.0
        self._lost = max(self._lost + time.perf_counter() - start - len(drew) * (plain + sampling), 0.0)
        return drew

    def _best_of_text(self, sequence: TokenSequence, length: int) -> tuple[int, float]:
        """(how many ids to draft from a match of that length, expected speed over plain decoding); (0, 1) for none.

        After drafts that did not pay there is none for a while; how often they would be right is seen meanwhile.
        """
        plain = self._plain.seconds
        if plain is None or self._matches[length].value < LEAST or self._lost_by_text > LOSS * self._elapsed:
            return 0, 1.0
        rates = [self._matches[min(length + i, LONGEST)].value for i in range(DRAFTS[-1])]
        return self._best(sequence, rates, plain)

    def _best_of_model(self, sequence: TokenSequence) -> tuple[int, float]:
        """The same for the draft model. One that does not pay is tried now and then, to see whether it does again."""
        plain, model = self._plain.seconds, self._draft_model
        if model is None or plain is None or sequence.room <= 1 or not model.has_room(sequence, DRAFTS[-1]):
            return 0, 1.0
        token = self._draft_token.seconds or DRAFT_PRIOR_COST * plain
        unread = max(0, model.missing(sequence) - 2)  # a draft that was right to its end leaves one unread
        n, gain = self._best(sequence, [self._agrees.value] * DRAFTS[-1], plain, token)
        reading = unread * (self._read_token.seconds or token / 4)
        is_first = self._draft_token.seconds is None
        if n and (is_first or reading < plain):
            return n, gain
        loss = reading + token + self._pass_seconds(DRAFTS[0]) - plain
        if self._was_plain and self._lost + loss <= LOSS * self._elapsed:
            return n or DRAFTS[0], GAIN
        return 0, 1.0

    def _best(self, sequence: TokenSequence, rates: list[float], plain: float, token: float = 0.0) -> tuple[int, float]:
        """(n, gain) of the best length of a draft.

        Args:
            rates: how often its ids are right, each if those before it are.
            plain, token: seconds of a plain pass, and of drafting a token.
        """
        sampling = self._sampling.seconds or 0.0
        best, best_gain = 0, GAIN
        expected = likelihood = 1.0  # ids that the pass is good for; that all drafted ones are right
        done = 0
        for n in DRAFTS:
            if n >= sequence.room:
                break
            for rate in rates[done:n]:
                likelihood *= rate
                expected += likelihood
            done = n
            seconds = n * token + self._pass_seconds(n) + expected * sampling
            gain = expected * (plain + sampling) / seconds
            if gain > best_gain:
                best, best_gain = n, gain
            if self._passes[n].seconds is None:
                break  # longer drafts wait until it is known what this one takes
        return best, best_gain if best else 1.0

    def _pass_seconds(self, n: int) -> float:
        """Of a pass over `n` drafted ids; before it is measured, at least what one over fewer takes.

        Never less than a plain pass: one that seems so was measured when the machine had more to do.
        """
        plain = self._plain.seconds or 0.0
        measured = self._passes[n].seconds
        if measured is None:
            fewer = [self._passes[each].seconds or 0.0 for each in DRAFTS if each < n]
            measured = max([plain * (1 + PRIOR_COST * n), *fewer])
        return max(plain, measured)

"""What an `Ask` is: one thing that can be asked, with its phrasings and its answer."""

from dataclasses import dataclass

from mmcli.data.demo.render import sentence
from mmcli.data.demo.world import Language


@dataclass(frozen=True)
class Ask:
    """Something that can be asked in one language.

    `questions` are the phrasings of the training text and `held_out_questions` those that only held-out questions use.
    `forms` are full answers with `{}` for the value, `value` the right value as shown there and `others` wrong ones.
    `answers` are the right short answers in lower case; `rivals` are names of other candidates, in both languages,
    that a right reply does not contain; `subject` names what is asked about.
    """

    family: str
    key: str
    language: Language
    questions: tuple[str, ...]
    forms: tuple[str, ...]
    value: str
    others: tuple[str, ...]
    answers: tuple[str, ...]
    rivals: tuple[str, ...]
    subject: tuple[str, ...] = ()
    held_out_questions: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """The answer alone, as a reply: the value without its article, preposition or measure word."""
        start = self.value.lower().find(self.answers[0])
        return self.value[start : start + len(self.answers[0])]

    def full(self, form: int = 0) -> str:
        """The answer as a sentence."""
        return sentence(self.forms[form % len(self.forms)].format(self.value))

    def wrong(self, other: str, form: int = 0) -> str:
        """A wrong sentence of the same shape."""
        return sentence(self.forms[form % len(self.forms)].format(other))

"""How orders, opposites, plurals, measure words and translations are asked and answered, in both languages."""

import re
from collections.abc import Iterator

from mmcli.data.demo.ask import Ask
from mmcli.data.demo.lexicon import MEASURES, OPPOSITES, ORDERS, PLURALS, TRANSLATIONS
from mmcli.data.demo.world import Language

Phrasings = tuple[tuple[str, ...], tuple[str, ...]]
"""(phrasings of the training text, phrasings of held-out questions alone), each with `{}` for the word."""

_ORDER: dict[Language, dict[str, Phrasings]] = {
    "en": {
        "after": (
            (
                "What {noun} comes after {}?",
                "Which {noun} follows {}?",
                "Which {noun} comes right after {}?",
                "What comes after {}?",
                "Which {noun} is next after {}?",
            ),
            ("Which {noun} comes next after {}?", "After {}, which {noun} comes?"),
        ),
        "before": (
            (
                "What {noun} comes before {}?",
                "Which {noun} is just before {}?",
                "Which {noun} comes right before {}?",
                "What comes before {}?",
                "What is the {noun} before {}?",
            ),
            ("Which {noun} stands before {}?", "Before {}, which {noun} comes?"),
        ),
    },
    "zh": {
        "after": (
            (
                "{}后面是{noun}？",
                "{}之后是{noun}？",
                "排在{}后面的是{noun}？",
                "紧跟在{}之后的是{noun}？",
                "{}的{next}是{noun}？",
            ),
            ("接在{}后面的是{noun}？", "{}过后是{noun}？"),
        ),
        "before": (
            (
                "{}前面是{noun}？",
                "{}之前是{noun}？",
                "排在{}前面的是{noun}？",
                "紧挨在{}之前的是{noun}？",
                "{}的{next}是{noun}？",
            ),
            ("{}的前边是{noun}？", "{}再往前是{noun}？"),
        ),
    },
}
_NOUNS: dict[str, tuple[str, str, str]] = {  # what is asked for, and the next and the previous one
    "day": ("星期几", "后一天", "前一天"),
    "month": ("几月", "下一个月", "上一个月"),
    "season": ("什么季节", "下一个季节", "上一个季节"),
    "number": ("几", "下一个数", "上一个数"),
}
_ORDER_FORMS: dict[Language, dict[str, str]] = {
    "en": {"after": "After {item} comes {{}}.", "before": "Before {item} comes {{}}."},
    "zh": {"after": "{item}后面是{{}}。", "before": "{item}前面是{{}}。"},
}
_MEETING = re.compile(r"(?<=[\u4e00-\u9fff])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[\u4e00-\u9fff])")


def spaced(text: str) -> str:
    """A space wherever a Chinese character meets a Latin letter or a digit."""
    return _MEETING.sub(" ", text)


def _order_phrasings(name: str, relation: str, item: str, language: Language) -> Phrasings:
    noun, following, previous = _NOUNS[name]
    slots = {"noun": name if language == "en" else noun, "next": following if relation == "after" else previous}
    trained, held_out = _ORDER[language][relation]
    found = [tuple(spaced(text.format(item, **slots)) for text in texts) for texts in (trained, held_out)]
    return found[0], found[1]


def order_asks(language: Language) -> Iterator[Ask]:
    """What comes before and after each item of each list."""
    for name, (items, round_trip) in ORDERS.items():
        for relation, step in (("after", 1), ("before", -1)):
            for i, item in enumerate(items):
                if not round_trip and not 0 <= i + step < len(items):
                    continue
                value = items[(i + step) % len(items)]
                others = [x for x in items if x not in (item, value)]
                trained, held_out = _order_phrasings(name, relation, item.say(language), language)
                form = _ORDER_FORMS[language][relation].format(item=item.say(language))
                if language == "zh" and item.zh.isascii():
                    form = spaced(form).replace("{}", " {}")
                yield Ask(
                    family="order",
                    key=f"order:{name}.{item.en}.{relation}",
                    language=language,
                    questions=trained,
                    held_out_questions=held_out,
                    forms=(form,),
                    value=value.say(language),
                    others=tuple(x.say(language) for x in others),
                    answers=(value.say(language).lower(),),
                    rivals=tuple(dict.fromkeys(s.lower() for x in others for s in x)),
                    subject=tuple(dict.fromkeys(s.lower() for s in item)),
                )


OPPOSITE: dict[Language, tuple[Phrasings, str]] = {
    "en": (
        (
            (
                "What is the opposite of “{}”?",
                "Which word means the opposite of “{}”?",
                "Tell me the opposite of “{}”.",
                "“{}” is the opposite of which word?",
                "Which word is the opposite of “{}”?",
            ),
            ("What word is opposite to “{}”?", "What would be the opposite of “{}”?"),
        ),
        "The opposite of “{word}” is “{}”.",
    ),
    "zh": (
        (
            (
                "“{}”的反义词是什么？",
                "哪个词和“{}”意思相反？",
                "“{}”的反义词是哪个？",
                "说出“{}”的反义词。",
                "和“{}”相反的词是什么？",
            ),
            ("“{}”的反义词怎么说？", "什么词与“{}”意思相反？"),
        ),
        "“{word}”的反义词是“{}”。",
    ),
}
COUNT: dict[Language, tuple[Phrasings, str]] = {
    "en": (
        (
            (
                "What is the plural of “{}”?",
                "How do you write more than one “{}”?",
                "Tell me the plural of “{}”.",
                "What is the plural form of “{}”?",
                "What do you call more than one “{}”?",
            ),
            ("Which word is the plural of “{}”?", "How do you say “{}” in the plural?"),
        ),
        "The plural of “{word}” is “{}”.",
    ),
    "zh": (
        (
            (
                "“{}”用什么量词？",
                "数“{}”的时候用哪个量词？",
                "“{}”的量词是什么？",
                "“{}”该用哪个量词？",
                "说出“{}”的量词。",
            ),
            ("“{}”配什么量词？", "和“{}”搭配的量词是哪个？"),
        ),
        "“{word}”的量词是“{}”。",
    ),
}
# Into Chinese and into English.
TRANSLATION: dict[Language, tuple[tuple[Phrasings, str], tuple[Phrasings, str]]] = {
    "en": (
        (
            (
                (
                    "How do you say “{}” in Chinese?",
                    "What is “{}” in Chinese?",
                    "Translate “{}” into Chinese.",
                    "What is the Chinese word for “{}”?",
                    "Please say “{}” in Chinese.",
                ),
                ("Which Chinese word means “{}”?", "Could you translate “{}” into Chinese?"),
            ),
            "“{word}” in Chinese is “{}”.",
        ),
        (
            (
                (
                    "What does “{}” mean in English?",
                    "What is “{}” in English?",
                    "Translate “{}” into English.",
                    "What is the English word for “{}”?",
                    "What does “{}” mean?",
                ),
                ("Which English word means “{}”?", "Could you translate “{}” into English?"),
            ),
            "“{word}” in English is “{}”.",
        ),
    ),
    "zh": (
        (
            (
                (
                    "“{}”用中文怎么说？",
                    "“{}”的中文是什么？",
                    "把“{}”翻译成中文。",
                    "“{}”翻译成中文是什么？",
                    "英文的“{}”是什么意思？",
                ),
                ("“{}”在中文里叫什么？", "“{}”译成中文是哪个词？"),
            ),
            "“{word}”的中文是“{}”。",
        ),
        (
            (
                (
                    "“{}”用英文怎么说？",
                    "“{}”的英文是什么？",
                    "把“{}”翻译成英文。",
                    "“{}”翻译成英文是什么？",
                    "“{}”对应的英文是什么？",
                ),
                ("“{}”在英文里叫什么？", "“{}”译成英文是哪个词？"),
            ),
            "“{word}”的英文是“{}”。",
        ),
    ),
}


def _word_ask(
    family: str,
    key: str,
    language: Language,
    said: tuple[Phrasings, str],
    word: str,
    value: str,
    pool: list[str],
) -> Ask:
    others = tuple(other for other in dict.fromkeys(pool) if other not in (word, value))
    (trained, held_out), form = said
    return Ask(
        family=family,
        key=key,
        language=language,
        questions=tuple(q.format(word) for q in trained),
        held_out_questions=tuple(q.format(word) for q in held_out),
        forms=(form.replace("{word}", word),),
        value=value,
        others=others,
        answers=(value.lower(),),
        rivals=tuple(other.lower() for other in others),
        subject=(word.lower(),),
    )


def opposite_asks(language: Language) -> Iterator[Ask]:
    """Both words of each pair of opposites."""
    pool = [term.say(language) for pair in OPPOSITES for term in pair]
    for pair in OPPOSITES:
        one, two = (term.say(language) for term in pair)
        for word, value in ((one, two), (two, one)):
            yield _word_ask("pairs", f"opposite:{pair[0].en}", language, OPPOSITE[language], word, value, pool)


def count_asks(language: Language) -> Iterator[Ask]:
    """Plurals in English, measure words in Chinese."""
    listed = PLURALS if language == "en" else MEASURES
    pool = [value for _, value in listed]
    for word, value in listed:
        yield _word_ask("pairs", f"count:{language}-{word}", language, COUNT[language], word, value, pool)


def translation_asks(language: Language) -> Iterator[Ask]:
    """Every word in both directions."""
    english, chinese = [t.en for t in TRANSLATIONS], [t.zh for t in TRANSLATIONS]
    to_chinese, to_english = TRANSLATION[language]
    for t in TRANSLATIONS:
        key = f"translation:{t.en}"
        yield _word_ask("translation", key, language, to_chinese, t.en, t.zh, chinese)
        yield _word_ask("translation", key, language, to_english, t.zh, t.en, english)

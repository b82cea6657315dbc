"""The chat page in a headless Chromium, against a server that says what it is told to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from mock_server import Script, mock_server

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

Open = Callable[..., "Page"]


@pytest.fixture
def open_page(new_page: Callable[..., Page]) -> Iterator[Open]:
    """open_page(script, size, **options): the page of a server that follows the script."""
    with ExitStack() as servers:

        def make(script: Script, size: str = "desktop", **options: Any) -> Page:
            page = new_page(size, **options)
            page.goto(servers.enter_context(mock_server(script)))
            return page

        yield make


def ask(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.click("#go")


def wait(page: Page) -> None:
    """Until no reply is being written."""
    page.wait_for_selector("#log[aria-busy=false]:not([hidden])")


def test_a_conversation_is_streamed_kept_and_sent_again(open_page: Open) -> None:
    script = Script(replies=["A **cloud** is water.", "Rain falls."], reasoning="Be brief.")
    page = open_page(script)
    page.wait_for_selector("#ideas button")
    ask(page, "What is a cloud?")
    page.wait_for_selector(".reply .tools")
    assert page.inner_text(".reply > .md") == "A cloud is water."
    assert page.inner_text(".reply > .md strong") == "cloud"
    assert "42 tokens" in page.inner_text(".reply > .tools")
    fold = page.locator("details.think")
    assert fold.get_attribute("open") is None and fold.locator("summary").inner_text() == "Reasoning"
    page.reload()
    page.wait_for_selector(".reply .tools")
    ask(page, "And rain?")
    page.wait_for_selector(".reply:nth-of-type(4) .tools")
    assert script.requests[1]["messages"] == [
        {"role": "user", "content": "What is a cloud?"},
        {"role": "assistant", "content": "A **cloud** is water.", "reasoning_content": "Be brief."},
        {"role": "user", "content": "And rain?"},
    ]
    assert script.requests[1]["stream"] is True and script.requests[1]["model"] == "0003-sft-small"
    page.click("#new")
    page.reload()
    assert page.is_visible("#empty")


def test_text_never_becomes_markup(open_page: Open) -> None:
    attack = '<img src=x onerror="window.hit=1"> [a](javascript:alert(1)) `<b>` ![p](https://a.b/c.png)'
    fenced = "\n\n```html\n<script>window.hit=1</script>\n```\n\n| <i>a</i> |\n|---|\n| <u>b</u> |"
    page = open_page(Script(replies=[attack + fenced]))
    ask(page, "<b>bold</b>")
    page.wait_for_selector(".reply .tools")
    assert page.inner_text(".bubble") == "<b>bold</b>"
    text = page.inner_text(".reply > .md")
    assert '<img src=x onerror="window.hit=1">' in text and "<script>window.hit=1</script>" in text
    assert page.locator(".reply :is(img, script, b, i, u)").count() == 0
    assert page.locator(".reply a").evaluate_all("links => links.map(a => a.href)") == ["https://a.b/c.png"]
    assert page.evaluate("window.hit") is None


MARKDOWN = {
    "# One\ntwo": "<h3>One</h3><p>two</p>",
    "a\nb": "<p>a<br>b</p>",
    "- a\n  - b\n- c": "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   more\n2. b": "<ol><li>amore</li><li>b</li></ol>",
    "- a\n\ntext": "<ul><li>a</li></ul><p>text</p>",
    "2024. was a year": '<ol start="2024"><li>was a year</li></ol>',
    "**a** *b* ~~c~~ `d*e*`": "<p><strong>a</strong> <em>b</em> <del>c</del> <code>d*e*</code></p>",
    "**云**是 snake_case_name 2 * 3 * 4": "<p><strong>云</strong>是 snake_case_name 2 * 3 * 4</p>",
    "\\*a\\*": "<p>*a*</p>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "---": "<hr>",
    "<think> a": "<p>&lt;think&gt; a</p>",
}


def test_markdown(open_page: Open) -> None:
    page = open_page(Script(replies=["hi"]))
    show = """text => {
        const node = document.createElement("div");
        showMarkdown(node, text);
        return node.innerHTML;
    }"""
    assert {text: page.evaluate(show, text) for text in MARKDOWN} == MARKDOWN
    grow = """text => {
        const [grown, whole] = [document.createElement("div"), document.createElement("div")];
        for (let end = 1; end <= text.length; end++) showMarkdown(grown, text.slice(0, end));
        showMarkdown(whole, text);
        return [grown.innerHTML, whole.innerHTML];
    }"""
    text = "\n\n".join(MARKDOWN) + "\n\n```python\na = 1\n\nb\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nend"
    grown, whole = page.evaluate(grow, text)
    assert grown == whole and "<table>" in whole and "a = 1\n\nb" in whole


@pytest.mark.parametrize(
    "hostile",
    [
        "> " * 3000 + "a",
        "- " * 3000 + "a",
        "*a " * 20_000,
        "[" * 30_000,
        "`" * 30_000 + "a",
        "**a" * 20_000,
        "|a" * 9000,
    ],
    ids=["quotes", "lists", "stars", "brackets", "ticks", "bold", "pipes"],
)
def test_hostile_markdown_takes_no_long_time(open_page: Open, hostile: str) -> None:
    page = open_page(Script(replies=["hi"]))
    show = """text => {
        const at = performance.now();
        showMarkdown(document.createElement("div"), text);
        return performance.now() - at;
    }"""
    assert page.evaluate(show, hostile) < 3000


def test_a_reply_is_stopped(open_page: Open) -> None:
    script = Script(replies=["word " * 2000], delay=0.02)
    page = open_page(script)
    ask(page, "Go on")
    page.wait_for_selector(".reply > .md p")
    assert page.get_attribute("#go", "aria-label") == "Stop"
    page.keyboard.press("Escape")
    page.wait_for_selector(".reply .tools")
    assert "stopped" in page.inner_text(".reply > .tools")
    assert page.inner_text(".reply > .md").startswith("word word")
    assert script.gone.wait(5), "the server does not see that the client is gone"


def test_a_turn_is_edited_and_a_reply_retried(open_page: Open) -> None:
    script = Script(replies=["one", "two", "three", "four"])
    page = open_page(script)
    ask(page, "First")
    page.wait_for_selector(".reply .tools")
    ask(page, "Second")
    page.wait_for_selector(".reply:nth-of-type(4) .tools")
    page.locator(".reply .tools").last.get_by_label("Retry").click()
    page.wait_for_selector(".reply .md:has-text('three')")
    wait(page)
    assert [m["content"] for m in script.requests[2]["messages"]] == ["First", "one", "Second"]
    page.locator(".user").first.hover()
    page.locator(".user").first.get_by_label("Edit").click()
    page.locator(".edit textarea").fill("Changed")
    page.locator(".edit textarea").press("Enter")
    page.wait_for_selector(".reply .md:has-text('four')")
    wait(page)
    assert [m["content"] for m in script.requests[3]["messages"]] == ["Changed"]
    assert page.locator(".turn").count() == 2


def test_the_oldest_turns_are_dropped_when_the_context_is_full(open_page: Open) -> None:
    script = Script(replies=["one", "two", "three"], context=2)
    page = open_page(script)
    page.click("#open")
    page.fill("#s-system", "Be brief.")
    page.keyboard.press("Escape")
    for number, text in enumerate(["First", "Second", "Third"], start=1):
        ask(page, text)
        page.wait_for_selector(f".reply:nth-of-type({2 * number}) .tools")
    assert [each["content"] for each in script.requests[-1]["messages"]] == ["Be brief.", "Third"]
    assert page.inner_text(".notice") == "The context is full: the model no longer sees the oldest 4 messages."
    assert page.locator(".error").count() == 0 and page.locator(".turn").count() == 6
    script.finish = "length"
    ask(page, "On")
    page.wait_for_selector(".reply:nth-of-type(8) .tools:has-text('the context is full')")
    script.context = 1  # the system prompt leaves no room
    ask(page, "Fourth")
    page.wait_for_selector(".error")
    assert page.input_value("#text") == "Fourth"


def test_settings_are_sent_and_kept(open_page: Open) -> None:
    script = Script(replies=["yes"], models=["one", "two"])
    page = open_page(script)
    page.wait_for_selector("#ideas button")
    page.select_option("#model", "two")
    page.click("#open")
    page.fill("#s-system", "Be brief.")
    page.fill("#s-temperature", "0")
    page.fill("#s-topk", "-3")  # refused by the field
    page.fill("#s-seed", "7")
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("#ideas button")
    ask(page, "Yes?")
    wait(page)
    body = script.requests[0]
    assert body["model"] == "two" and body["temperature"] == 0 and body["seed"] == 7
    assert not {"top_k", "top_p", "max_tokens"} & body.keys()
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_errors_are_two_lines_and_lose_no_text(open_page: Open) -> None:
    script = Script(replies=["late"], status=429, message="The queue is full.")
    page = open_page(script)
    ask(page, "Hello")
    page.wait_for_selector(".error")
    assert page.locator(".error p").all_inner_texts() == [
        "The server answered 429: The queue is full.",
        "Wait a moment, then retry.",
    ]
    assert page.get_attribute(".error", "role") == "alert" and page.input_value("#text") == "Hello"
    script.status = 200
    page.click(".error button")
    page.wait_for_selector(".reply .tools")
    assert page.inner_text(".reply > .md") == "late" and page.input_value("#text") == ""
    assert page.locator(".error").count() == 0
    script.cut, script.replies = True, ["half of it is lost"]
    ask(page, "More")
    page.wait_for_selector(".error")
    assert page.locator(".error p").first.inner_text() == "The reply broke off: the connection was lost."
    assert page.locator(".reply > .md").last.inner_text() == "half of"


def test_a_server_that_is_gone_is_named(open_page: Open) -> None:
    page = open_page(Script(replies=["x"]))
    page.wait_for_selector("#ideas button")
    page.route("**/v1/**", lambda route: route.abort())
    page.reload()
    page.wait_for_selector(".error")
    assert page.locator(".error p").first.inner_text() == "The server cannot be reached."
    page.unroute("**/v1/**")
    page.click(".error button")
    page.wait_for_selector("#ideas button")


def test_a_key_is_asked_for(open_page: Open) -> None:
    script = Script(replies=["opened"], key="secret")
    page = open_page(script)
    page.wait_for_selector("#ask[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask[open]")
    page.fill("#key", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ideas button")
    ask(page, "Open")
    page.wait_for_selector(".reply .tools")
    assert page.inner_text(".reply > .md") == "opened"
    assert page.evaluate("JSON.stringify(localStorage).includes('secret')") is False


def test_enter_sends_but_not_while_an_input_method_composes(open_page: Open) -> None:
    script = Script(replies=["好"])
    page = open_page(script)
    page.wait_for_selector("#ideas button")
    page.fill("#text", "nihao")
    press = """options => document.getElementById("text").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...options }))"""
    page.evaluate(press, {"isComposing": True})
    page.evaluate(press, {"keyCode": 229})  # Safari's Enter that ends a composition
    page.evaluate(press, {"shiftKey": True})
    assert page.input_value("#text") == "nihao" and script.requests == []
    page.evaluate(press, {})
    page.wait_for_selector(".reply .tools")
    assert script.requests[0]["messages"][0]["content"] == "nihao"


def test_reasoning_in_tags_is_folded(open_page: Open) -> None:
    page = open_page(Script(replies=["<think>Two and two.</think>\n\nFour."]))
    ask(page, "2 + 2?")
    page.wait_for_selector(".reply .tools")
    assert page.inner_text(".reply > .md") == "Four."
    page.click("details.think summary")
    assert page.inner_text("details.think .md") == "Two and two."


@pytest.mark.parametrize("size", ["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_it_fits_is_labelled_and_has_contrast(open_page: Open, size: str, scheme: str, locale: str) -> None:
    long = (
        "A line\n\n```\n" + "x = 1; " * 60 + "\n```\n\n| " + "column | " * 20 + "\n|" + "---|" * 20 + "\n\n" + "w" * 300
    )
    script = Script(replies=[long], status=200)
    page = open_page(script, size, color_scheme=scheme, locale=locale)
    ask(page, "word " * 200)
    page.wait_for_selector(".reply .tools")
    script.status = 500
    ask(page, "again")
    page.wait_for_selector(".error")
    page.click("#open")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate("main.scrollWidth <= main.clientWidth")
    names = page.locator("button, select, textarea, input").evaluate_all(
        "all => all.map(e => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent.trim())"
    )
    assert all(names), names
    assert page.get_attribute("html", "lang") == ("zh-CN" if locale == "zh-CN" else "en")
    assert page.inner_text("#panel-title") == ("设置" if locale == "zh-CN" else "Settings")
    for foreground, background in page.evaluate(COLOURS):
        assert contrast(foreground, background) >= 4.5, (foreground, background)


# The colours of texts and of what they stand on, both as CSS variables.
COLOURS = """() => {
    const style = getComputedStyle(document.documentElement);
    const pairs = ["text bg", "text surface", "muted bg", "muted surface", "muted raised", "accent bg",
        "on-accent accent", "text soft", "bad bad-soft", "text code"];
    return pairs.map(pair => pair.split(" ").map(name => style.getPropertyValue("--" + name).trim()));
}"""


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        channels = [int(part, 16) / 255 for part in re.findall("..", colour.removeprefix("#"))]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_language_and_theme_can_be_switched(open_page: Open) -> None:
    page = open_page(Script(replies=["x"]))
    page.click("#open")
    page.select_option("#s-lang", "zh")
    page.select_option("#s-theme", "dark")
    page.keyboard.press("Escape")
    page.reload()
    assert page.get_attribute("#text", "placeholder") == "输入消息"
    assert page.get_attribute("html", "data-theme") == "dark"


def test_the_two_languages_have_the_same_words(open_page: Open) -> None:
    page = open_page(Script(replies=["x"]))
    shape = "l => Object.entries(WORDS[l]).map(([k, v]) => [k, typeof v, Array.isArray(v) ? v.length : 0]).sort()"
    assert page.evaluate(shape, "en") == page.evaluate(shape, "zh")


def test_the_keyboard_is_enough(open_page: Open) -> None:
    page = open_page(Script(replies=["one", "two"]))
    page.wait_for_selector("#ideas button")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "sr skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("First")
    page.keyboard.press("Enter")
    page.wait_for_selector(".reply .tools")
    assert page.inner_text("#said") == "one"  # read out when it is complete
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(".edit textarea:focus")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "text"

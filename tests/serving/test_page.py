"""The page in a real browser: headless Chromium, driven by Playwright."""

import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

pytest.importorskip("playwright.sync_api", reason="requires playwright")
pytest.importorskip("starlette", reason="requires the extra `serve`")
pytest.importorskip("uvicorn", reason="requires the extra `serve`")

# The imports below need these packages.
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright  # noqa: E402

import tf_mlm  # noqa: E402
from tests.serving.page_stub import (  # noqa: E402
    ADAPTED,
    FILLS,
    MASK,
    PAGE,
    STARTING,
    Stub,
    log_probability,
    serving,
)

VIEWS = ("type", "surprise", "curves")
ATTACKS = [
    "<script>window.attacked = true</script>",
    "<img src=x onerror='window.attacked = true'>",
    "<svg onload=window.attacked=true>",
    "<svg><script>window.attacked = true</script></svg>",
    "<iframe srcdoc='<script>parent.attacked = true</script>'></iframe>",
    '"><body onload=window.attacked=true>',
    "' autofocus onfocus='window.attacked = true",
    "<details open ontoggle=window.attacked=true>",
    "<style>body { display: none }</style>",
    "</script><script>window.attacked = true</script>",
    "</textarea><img src=x onerror=window.attacked=true>",
    "<a href='javascript:window.attacked=true'>link</a>",
    "javascript:window.attacked=true",
    "{{constructor.constructor('window.attacked=true')()}}",
    "${window.attacked = true}",
    "&lt;img src=x onerror=window.attacked=true&gt;",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.attacked=true>",
]
expect.set_options(timeout=20_000)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def address(stub: Stub) -> Iterator[str]:
    with serving(stub.app()) as address:
        yield address


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page in a new window: `open_page(address, width=…, failures=…, **link)`.

    At the end, no window has written an error to the console or sent a request to another origin. `failures` allows
    the console's line about a failed request, in tests that make requests fail.
    """
    contexts = []
    problems: list[str] = []

    def open_one(address: str, width: int = 1280, failures: bool = False, theme: Any = "light", **link: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not (failures and "Failed to load resource" in message.text):
                problems.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: problems.append(request.url) if is_foreign(request.url, address) else None)
        page.goto(f"{address}#{urlencode(link, doseq=True)}" if link else address)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


def is_foreign(url: str, address: str) -> bool:
    return not url.startswith((f"http://{urlsplit(address).netloc}/", "data:"))


def text_of(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Text")


def chip(page: Page, word: str) -> Locator:
    return page.locator("#chips").get_by_role("button", name=word, exact=True)


def fills(page: Page, model: str, mask: int = 1) -> Locator:
    return page.get_by_role("list", name=f"Fills of mask {mask}, {model} model").get_by_role("button")


def link_of(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).fragment, keep_blank_values=True)


def write_events(run: Path, events: list[dict[str, Any]], mode: str = "a") -> None:
    run.mkdir(exist_ok=True)
    with open(run / "metrics.jsonl", mode) as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


START = {
    "event": "start",
    "epoch": 0,
    "step": 0,
    "val_loss": 6.0,
    "val_perplexity": 403.4,
    "steps_per_epoch": 20,
    "num_train_steps": 60,
}


def step_event(step: int, loss: float = 5.0) -> dict[str, Any]:
    epoch = (step - 1) // 20 + 1
    return {"event": "step", "epoch": epoch, "step": step, "loss": loss, "learning_rate": 1e-4 * step}


def epoch_event(epoch: int) -> dict[str, Any]:
    loss = 5.0 - epoch
    return step_event(20 * epoch, loss) | {
        "event": "epoch",
        "val_loss": loss,
        "val_perplexity": 2.718**loss,
        "seconds": 100.0,
    }


def numbers_of(page: Page, curve: str) -> int:
    """How many points a curve has."""
    return len(re.findall("[ML]", page.locator(f"[data-curve='{curve}']").get_attribute("d") or ""))


# ---------------------------------------------------------------- one file


def test_the_page_is_one_file_without_inline_styles_and_handlers() -> None:
    html = PAGE.read_text(encoding="utf-8")
    assert html.count("<script") == html.count("<style") == 1
    markup = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"\s(style|on\w+)\s*=", markup)
    assert not re.search(r"(src|href)=\"(?!data:)", markup)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|@import|url\(", html)


# ---------------------------------------------------------------- type


def test_typed_masks_show_the_fills_of_both_models(open_page: Open, address: str) -> None:
    page = open_page(address)
    text_of(page).fill("A dull [MASK] about a [MASK].")
    for mask in (1, 2):
        for model, name in (("adapted", ADAPTED), ("starting", STARTING)):
            expect(fills(page, model, mask)).to_have_count(len(FILLS[name]))
    expect(fills(page, "adapted").first).to_have_accessible_name("film, 47%")
    expect(fills(page, "starting").last).to_have_accessible_name("day, <0.1%")
    # The bars of a mask share a scale: 0.47 of the adapted model is the longest.
    widths = [
        fills(page, model).first.locator(".bar span").evaluate("bar => bar.clientWidth / bar.parentNode.clientWidth")
        for model in ("adapted", "starting")
    ]
    assert widths == pytest.approx([1.0, 0.11 / 0.47], abs=0.03)
    expect(page.locator("#fills-said")).to_contain_text("Mask 2. adapted model: film, 47%; starting model: thing, 11%.")


def test_a_click_on_a_word_masks_it_and_another_restores_it(open_page: Open, address: str) -> None:
    page = open_page(address, text="The plot of the film, and of the book.")
    expect(chip(page, "plot")).to_have_attribute("aria-pressed", "false")
    page.locator("#chips").get_by_role("button", name="of", exact=True).nth(1).click()
    expect(text_of(page)).to_have_value("The plot of the film, and [MASK] the book.")
    expect(fills(page, "adapted")).to_have_count(5)
    chip(page, "plot").click()
    expect(text_of(page)).to_have_value("The [MASK] of the film, and [MASK] the book.")
    chip(page, "[MASK] 2: Restore “of”").click()
    expect(text_of(page)).to_have_value("The [MASK] of the film, and of the book.")
    chip(page, "[MASK] 1: Restore “plot”").click()
    expect(text_of(page)).to_have_value("The plot of the film, and of the book.")
    expect(page.locator("#fills")).to_contain_text("The text has no mask.")


def test_a_mask_keeps_its_word_while_the_text_around_it_is_edited(open_page: Open, address: str) -> None:
    page = open_page(address, text="A great film.")
    chip(page, "great").click()
    text_of(page).press("Home")
    text_of(page).press_sequentially("Really: ")
    text_of(page).press("End")
    text_of(page).press_sequentially(" Or not.")
    expect(chip(page, "not")).to_be_visible()
    expect(text_of(page)).to_have_value("Really: A [MASK] film. Or not.")
    chip(page, "[MASK] 1: Restore “great”").click()
    expect(text_of(page)).to_have_value("Really: A great film. Or not.")


def test_a_click_on_a_fill_puts_it_into_its_mask(open_page: Open, address: str) -> None:
    page = open_page(address, text="A [MASK] and a [MASK].")
    fills(page, "starting", 2).nth(1).click()
    expect(text_of(page)).to_have_value("A [MASK] and a place.")
    expect(chip(page, "place")).to_be_focused()
    page.keyboard.press("Enter")
    expect(text_of(page)).to_have_value("A [MASK] and a [MASK].")
    chip(page, "[MASK] 2: Restore “place”").click()
    expect(text_of(page)).to_have_value("A [MASK] and a place.")


def test_a_mask_without_a_known_word_takes_the_most_likely_fill(open_page: Open, address: str) -> None:
    page = open_page(address, text="A great [MASK].")
    expect(fills(page, "adapted")).to_have_count(5)
    chip(page, "[MASK] 1: Insert the most likely fill").click()
    expect(text_of(page)).to_have_value("A great film.")


def test_models_can_be_hidden_but_not_all(open_page: Open, address: str, stub: Stub) -> None:
    page = open_page(address, text="A great [MASK].")
    expect(fills(page, "starting")).to_have_count(5)
    page.get_by_role("checkbox", name="adapted model").uncheck()
    expect(fills(page, "adapted")).to_have_count(0)
    expect(fills(page, "starting")).to_have_count(5)
    expect(page.get_by_role("checkbox", name="starting model")).to_be_disabled()
    stub.requests.clear()
    text_of(page).fill("A bad [MASK].")
    expect(page.locator(".column.stale")).to_have_count(0)
    expect(page.locator("#chips")).to_contain_text("bad")
    assert [body["model"] for path, body in stub.requests if path == "/page/fill"] == [STARTING]
    page.get_by_role("checkbox", name="adapted model").check()
    expect(fills(page, "adapted")).to_have_count(5)


def test_one_model_alone(open_page: Open, stub: Stub, address: str) -> None:
    stub.models = [stub.models[0] | {"role": "model", "title": "distilbert"}]
    page = open_page(address, text="A great [MASK].")
    expect(page.locator("#models")).to_contain_text("distilbert")
    expect(page.get_by_role("list", name="Fills of mask 1, distilbert").get_by_role("button")).to_have_count(5)
    expect(page.get_by_role("checkbox")).to_have_count(0)
    page.get_by_role("tab", name="Surprise").click()
    text_of(page).fill("A great film.")
    expect(page.locator("#scored small")).to_have_count(4)
    expect(page.get_by_role("radio")).to_have_count(0)


def test_models_that_write_the_mask_in_different_ways(open_page: Open, stub: Stub, address: str) -> None:
    stub.models[1]["mask_token"] = "<mask>"
    stub.fills_of_text["A great <mask>."] = {STARTING: [("thing", 0.5)]}
    page = open_page(address, text="A great [MASK].")
    expect(fills(page, "adapted")).to_have_count(5)
    assert {body["model"]: body["text"] for path, body in stub.requests if path == "/page/fill"} == {
        ADAPTED: "A great [MASK].",
        STARTING: "A great <mask>.",
    }


def test_the_mask_of_the_page_is_that_of_the_first_model(open_page: Open, stub: Stub, address: str) -> None:
    stub.models[0]["mask_token"] = "<mask>"
    page = open_page(address)
    expect(text_of(page)).to_have_value("This is a great <mask>.")
    text_of(page).fill("A film.")
    text_of(page).press("Home")
    text_of(page).press_sequentially("[MASK] x")
    expect(text_of(page)).to_have_value("<mask> xA film.")
    assert text_of(page).evaluate("field => field.selectionStart") == len("<mask> x")
    expect(page.locator("#chips")).to_contain_text("xA")
    asked = [(body["model"], body["text"]) for path, body in stub.requests if path == "/page/fill"]
    assert sorted(asked[-2:]) == [(ADAPTED, "<mask> xA film."), (STARTING, "[MASK] xA film.")]


def test_spaces_that_a_tokenizer_counts_as_part_of_a_word_stay(open_page: Open, stub: Stub, address: str) -> None:
    stub.words[ADAPTED] = r"\s*\[MASK\]|\s*\w+"
    page = open_page(address, text="A  great film.")
    chip(page, "great").click()
    expect(text_of(page)).to_have_value("A  [MASK] film.")
    expect(fills(page, "adapted")).to_have_count(5)
    chip(page, "[MASK] 1: Restore “great”").click()
    expect(text_of(page)).to_have_value("A  great film.")
    page.get_by_role("tab", name="Surprise").click()
    page.locator("#scored").get_by_role("button", name="great").click()
    page.get_by_role("button", name="Mask word").click()
    expect(text_of(page)).to_have_value("A  [MASK] film.")
    fills(page, "adapted").first.click()
    expect(text_of(page)).to_have_value("A  film film.")


def test_examples_start_from_the_first_and_can_be_chosen(open_page: Open, address: str, stub: Stub) -> None:
    page = open_page(address)
    expect(text_of(page)).to_have_value(stub.examples[0])
    page.get_by_role("button", name=stub.examples[1]).click()
    expect(text_of(page)).to_have_value(stub.examples[1])
    expect(fills(page, "adapted")).to_have_count(5)
    page.get_by_role("tab", name="Surprise").click()
    page.get_by_role("button", name=stub.examples[2]).click()
    expect(page.locator("#scored")).to_contain_text("finest")


def test_a_late_answer_to_an_earlier_text_is_dropped(open_page: Open, address: str, stub: Stub) -> None:
    late, next_one = "A late [MASK].", "An early [MASK]."
    stub.fill_delays[late] = 1.0
    stub.fills_of_text = {
        late: {ADAPTED: [("wrong", 0.9)], STARTING: [("wrong", 0.9)]},
        next_one: {ADAPTED: [("right", 0.9)], STARTING: [("right", 0.9)]},
    }
    page = open_page(address)
    text_of(page).fill(late)
    with page.expect_event("requestfailed", lambda request: late in (request.post_data or "")):
        page.wait_for_timeout(400)
        text_of(page).fill(next_one)
    expect(fills(page, "adapted")).to_have_text(re.compile("right"))
    page.wait_for_timeout(1200)
    expect(fills(page, "starting")).to_have_text(re.compile("right"))
    expect(page.locator("#fills")).not_to_contain_text("wrong")


# ---------------------------------------------------------------- link


def test_a_link_reproduces_the_view(open_page: Open, address: str) -> None:
    page = open_page(address)
    text_of(page).fill("50% of “it” & more = naïve #1?")
    chip(page, "more").click()
    page.get_by_role("checkbox", name="starting model").uncheck()
    expect(page).to_have_url(re.compile(f"model={ADAPTED}&word=more"))
    other = open_page(page.url)
    expect(text_of(other)).to_have_value("50% of “it” & [MASK] = naïve #1?")
    expect(other.get_by_role("checkbox", name="starting model")).not_to_be_checked()
    expect(other.get_by_role("checkbox", name="adapted model")).to_be_checked()
    chip(other, "[MASK] 1: Restore “more”").click()
    expect(text_of(other)).to_have_value("50% of “it” & more = naïve #1?")
    other.get_by_role("checkbox", name="starting model").check()
    other.get_by_role("tab", name="Surprise").click()
    other.locator("#lens label", has_text="starting model").click()
    expect(other).to_have_url(re.compile(f"color={STARTING}"))
    third = open_page(other.url)
    expect(third.get_by_role("tab", name="Surprise")).to_have_attribute("aria-selected", "true")
    expect(third.get_by_role("radio", name="starting model")).to_be_checked()
    assert link_of(third)["text"] == ["50% of “it” & more = naïve #1?"]


def test_back_returns_to_the_view_before(open_page: Open, address: str) -> None:
    page = open_page(address, text="A film.", view="type")
    for view in ("Surprise", "Curves"):
        page.get_by_role("tab", name=view).click()
    page.go_back()
    expect(page.get_by_role("tabpanel", name="Surprise")).to_be_visible()
    expect(text_of(page)).to_have_value("A film.")
    page.go_back()
    expect(page.get_by_role("tabpanel", name="Type")).to_be_visible()


def test_a_link_with_unknown_values_is_shown_as_the_default(open_page: Open, address: str) -> None:
    page = open_page(address, view="nothing", text="A film.", model="../../etc", color="x", word="y")
    expect(page.get_by_role("tabpanel", name="Type")).to_be_visible()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(2)


# ---------------------------------------------------------------- surprise


def shown(value: float, plus: bool = False) -> str:
    return f"{value:+.2f}".replace("-", "−").replace("+", "+" if plus else "")


def test_surprise_shows_the_values_of_each_word(open_page: Open, address: str) -> None:
    words = ["A", "great", "film", "."]
    adapted = [log_probability(ADAPTED, word) for word in words]
    starting = [log_probability(STARTING, word) for word in words]
    differences = [first - second for first, second in zip(adapted, starting, strict=True)]
    page = open_page(address, view="surprise", text="A great film.")
    values = page.locator("#scored small")
    expect(page.get_by_role("radio", name="difference")).to_be_checked()
    expect(values).to_have_text([shown(each, plus=True) for each in differences])
    page.locator("#lens label", has_text="adapted model").click()
    expect(values).to_have_text([shown(each) for each in adapted])
    page.locator("#lens label", has_text="starting model").click()
    expect(values).to_have_text([shown(each) for each in starting])
    word = page.locator("#scored").get_by_role("button").nth(1)
    expect(word).to_have_accessible_name(
        f"great: adapted model {shown(adapted[1])}, starting model {shown(starting[1])}, "
        f"difference {shown(differences[1], plus=True)}"
    )
    word.hover()
    expect(page.locator("#word-readout")).to_contain_text(f"adapted model {shown(adapted[1])} (")
    rows = page.locator("#sums tbody tr")
    expect(rows.nth(0)).to_contain_text(shown(sum(adapted)))
    expect(rows.nth(1)).to_contain_text(shown(sum(starting)))
    expect(rows.nth(2)).to_contain_text(shown(sum(differences), plus=True))
    expect(rows.nth(1)).to_contain_text(shown(sum(starting) / 4))


def test_the_color_of_a_word_follows_its_value(open_page: Open, address: str) -> None:
    page = open_page(address, view="surprise", text="A great film, and a book.")
    measure = "words => words.map(word => [parseFloat(word.style.getPropertyValue('--strength')), word.className])"
    expect(page.locator("#scored .word")).to_have_count(8)
    for (strength, model), word in zip(
        page.locator("#scored .word").evaluate_all(measure),
        ["A", "great", "film", ",", "and", "a", "book", "."],
        strict=True,
    ):
        difference = log_probability(ADAPTED, word) - log_probability(STARTING, word)
        assert strength == pytest.approx(50 * min(1, abs(difference) / 3), abs=0.06)
        assert model.split() == ["word", "model-0" if difference >= 0 else "model-1"]


def test_words_of_different_tokenizers_are_joined(open_page: Open, address: str, stub: Stub) -> None:
    stub.words[STARTING] = r"\w+'\w+|\w+"  # don't is one word, three in the other model
    page = open_page(address, view="surprise", text="I don't know")
    expect(page.locator("#scored .word")).to_have_count(3)
    first = sum(log_probability(ADAPTED, word) for word in ("don", "'", "t"))
    second = log_probability(STARTING, "don't")
    expect(page.locator("#scored small").nth(1)).to_have_text(shown(first - second, plus=True))


def test_a_word_is_masked_from_the_surprise_view(open_page: Open, address: str) -> None:
    page = open_page(address, view="surprise", text="A great film.")
    page.locator("#scored").get_by_role("button").nth(1).click()
    page.get_by_role("button", name="Mask word").click()
    expect(page.get_by_role("tabpanel", name="Type")).to_be_visible()
    expect(text_of(page)).to_have_value("A [MASK] film.")
    expect(fills(page, "adapted")).to_have_count(5)
    page.get_by_role("tab", name="Surprise").click()
    expect(page.locator("#score-hint")).to_contain_text("The text has a mask.")
    page.get_by_role("button", name="Restore the words").click()
    expect(text_of(page)).to_have_value("A great film.")
    expect(page.locator("#scored small")).to_have_count(4)


def test_a_text_with_a_mask_is_not_scored(open_page: Open, address: str, stub: Stub) -> None:
    page = open_page(address, view="surprise", text="A [MASK] film.")
    expect(page.locator("#score-hint")).to_contain_text("Put a word into each mask")
    expect(page.get_by_role("button", name="Restore the words")).to_have_count(0)
    expect(page.locator("#scored")).to_be_hidden()
    assert all(path != "/page/score" for path, _ in stub.requests)


# ---------------------------------------------------------------- curves


def test_the_curves_grow_while_the_run_trains(open_page: Open, address: str, stub: Stub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_events(run, [START, step_event(5, 5.9), step_event(10, 5.5)])
    stub.runs, stub.states = {ADAPTED: run}, {ADAPTED: "running"}
    page = open_page(address, view="curves")
    progress = page.get_by_role("progressbar", name=f"Progress of {ADAPTED}")
    expect(progress).to_have_js_property("value", 10)
    expect(progress).to_have_js_property("max", 60)
    assert numbers_of(page, f"{ADAPTED} loss") == 2
    expect(page.locator("#runs")).to_contain_text("Step 10 of 60, epoch 1 of 20")
    write_events(run, [step_event(15, 5.2), step_event(20, 5.1), epoch_event(1)])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"event": "step", "epo')  # a line that is being written
    expect(progress).to_have_js_property("value", 20)
    assert numbers_of(page, f"{ADAPTED} loss") == 4
    assert numbers_of(page, f"{ADAPTED} val_loss") == numbers_of(page, f"{ADAPTED} val_perplexity") == 2
    # 100 s per epoch of 20 steps, and 40 steps: 200 s.
    expect(page.locator("#runs")).to_contain_text("about 3 min left")
    assert {path: body for path, body in stub.requests if "runs" in path} == {f"/page/runs/{ADAPTED}": None}
    with open(run / "metrics.jsonl", "a") as file:
        file.write('ch": 2, "step": 40, "loss": 4.0, "learning_rate": 0.001}\n')
    stub.states[ADAPTED] = "finished"
    write_events(
        run, [{"event": "end", "epoch": 3, "step": 60, "seconds": 300.0, "best_epoch": 1, "best_val_loss": 4.0}]
    )
    expect(page.locator("#runs")).to_contain_text("trained for 5 min · lowest validation loss 4.000 in epoch 1")
    expect(progress).to_have_count(0)
    stub.requests.clear()
    page.wait_for_timeout(2500)
    assert stub.requests == []  # a finished run is not polled


def test_a_run_that_was_rolled_back_is_read_again(open_page: Open, address: str, stub: Stub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_events(run, [START, *(step_event(step) for step in (5, 10, 15, 20))])
    stub.runs, stub.states = {ADAPTED: run}, {ADAPTED: "running"}
    page = open_page(address, view="curves")
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 20)
    write_events(run, [START, step_event(5), step_event(10)], mode="w")
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 10)
    assert numbers_of(page, f"{ADAPTED} loss") == 2


def test_runs_are_overlaid_and_hidden_with_their_models(
    open_page: Open, address: str, stub: Stub, tmp_path: Path
) -> None:
    for name, last in ((ADAPTED, 20), (STARTING, 40)):
        write_events(tmp_path / name, [START, step_event(last), epoch_event(1)])
    stub.runs = {name: tmp_path / name for name in (ADAPTED, STARTING)}
    page = open_page(address, view="curves")
    expect(page.locator("[data-curve$='val_loss']")).to_have_count(2)
    expect(page.locator("#charts figcaption").first).to_contain_text(f"{STARTING} validation 4.000 at step 20")
    page.get_by_role("checkbox", name="adapted model").uncheck()
    expect(page.locator("[data-curve$='val_loss']")).to_have_count(1)
    page.locator("summary").click()
    expect(page.get_by_role("table", name=STARTING).locator("tbody tr")).to_have_text(
        [re.compile("^006.0000|^00–6.0000"), re.compile("^1204.00004.0000")]
    )


def test_a_chart_is_read_with_the_mouse_and_the_keyboard(
    open_page: Open, address: str, stub: Stub, tmp_path: Path
) -> None:
    write_events(tmp_path / "run", [START, *(step_event(step, 6 - step / 10) for step in range(5, 25, 5))])
    stub.runs = {ADAPTED: tmp_path / "run"}
    page = open_page(address, view="curves")
    chart = page.get_by_role("slider", name="Loss, step")
    expect(chart).to_have_attribute("aria-valuetext", "training 4.000 at step 20; validation 6.000 at step 0")
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(chart).to_have_attribute("aria-valuenow", "15")
    expect(page.locator("#charts figcaption").first).to_contain_text("training 4.500 at step 15")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(chart).to_have_attribute("aria-valuenow", "5")
    expect(page.locator(".cursor")).to_have_count(3)  # the same step in every chart
    box = chart.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 14, box["y"] + 40)
    expect(page.locator("#charts figcaption").last).to_contain_text("learning rate 2e-3 at step 20")


@pytest.mark.parametrize("losses", [(3.85, 3.7), (6.0, 4.0), (11.0, 3.5), (2.0, 2.0), (1e-3, 0.0)])
def test_each_axis_has_labels(
    open_page: Open, address: str, stub: Stub, tmp_path: Path, losses: tuple[float, float]
) -> None:
    first, last = losses
    events = [
        START | {"val_loss": first, "val_perplexity": math.exp(first)},
        step_event(20, first),
        epoch_event(1) | {"loss": last, "val_loss": last, "val_perplexity": math.exp(last)},
    ]
    write_events(tmp_path / "run", events)
    stub.runs = {ADAPTED: tmp_path / "run"}
    page = open_page(address, view="curves")
    expect(page.locator(".chart")).to_have_count(3)
    for chart in page.locator(".chart").all():
        labels = chart.locator(".grid + text").all_text_contents()
        assert 2 <= len(labels) == len(set(labels)) <= 9


def test_values_that_are_no_numbers_leave_holes(open_page: Open, address: str, stub: Stub, tmp_path: Path) -> None:
    bad = [
        step_event(10) | {"loss": None},
        step_event(15) | {"loss": "nan"},
        {"event": "non_finite", "epoch": 1, "step": 15},
    ]
    write_events(tmp_path / "run", [START | {"val_perplexity": None}, step_event(5), *bad])
    stub.runs, stub.states = {ADAPTED: tmp_path / "run"}, {ADAPTED: "stopped"}
    page = open_page(address, view="curves")
    expect(page.locator("#runs")).to_contain_text("the loss was not finite")
    assert numbers_of(page, f"{ADAPTED} loss") == 1


def test_without_a_run_the_curves_say_so(open_page: Open, address: str) -> None:
    page = open_page(address, view="curves")
    expect(page.locator("#runs")).to_contain_text("No run directory is served.")
    expect(page.locator("#charts")).to_be_hidden()


# ---------------------------------------------------------------- errors


def test_a_busy_server_is_asked_again(open_page: Open, address: str, stub: Stub) -> None:
    stub.failures = [
        ("/page/fill", 429, {"error": "The queue is full."}),
        ("/page/fill", 503, {"error": "The server is stopping."}),
        ("/page/segments", 429, {"error": "The queue is full."}),
    ]
    page = open_page(address, failures=True, text="A great [MASK].")
    expect(fills(page, "adapted")).to_have_count(5)
    expect(fills(page, "starting")).to_have_count(5)
    expect(chip(page, "great")).to_be_visible()
    expect(page.locator(".problem:visible")).to_have_count(0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"error": "The text has 600 tokens; the model reads at most 512."}, "600 tokens"), ("?", "status 413")],
)
def test_a_refusal_is_shown_in_one_line(open_page: Open, address: str, stub: Stub, answer: Any, said: str) -> None:
    stub.failures = [("/page/fill", 413, answer), ("/page/fill", 413, answer)]
    page = open_page(address, failures=True, text="A great [MASK].")
    expect(page.locator("#fills .problem")).to_have_count(2)
    expect(page.locator("#fills .problem").first).to_contain_text(said)
    text_of(page).fill("Another [MASK].")
    expect(fills(page, "adapted")).to_have_count(5)
    expect(page.locator(".problem:visible")).to_have_count(0)


def test_errors_stand_where_they_belong(open_page: Open, address: str, stub: Stub, tmp_path: Path) -> None:
    stub.runs = {ADAPTED: tmp_path}
    stub.failures = [
        ("/page/segments", 400, {"error": "The text is too long."}),
        ("/page/fill", 400, {"error": "The text is too long."}),
        ("/page/score", 500, {"error": "The model failed."}),
        (f"/page/runs/{ADAPTED}", 404, {"error": "No run has this name."}),
    ]
    page = open_page(address, failures=True, text="A great [MASK].")
    expect(page.locator("#text-problem")).to_have_text("The text is too long.")
    expect(page.get_by_text("The text is too long.")).to_have_count(1)  # not in the column as well
    page.get_by_role("tab", name="Surprise").click()
    text_of(page).fill("A film.")
    expect(page.locator("#score-problems")).to_contain_text("model: The model failed.")
    expect(page.locator("#scored small")).to_have_count(3)  # of the other model
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator("#runs .problem")).to_have_text("No run has this name.")


def test_a_lost_server_is_reported_and_recovers(open_page: Open, stub: Stub) -> None:
    with serving(stub.app()) as address:
        page = open_page(address, failures=True, text="A great [MASK].")
        expect(fills(page, "adapted")).to_have_count(5)
    text_of(page).fill("A bad [MASK].")
    expect(page.locator("#lost")).to_have_text("The server does not answer.")
    text_of(page).fill("A [MASK] film.")
    with serving(stub.app(), urlsplit(address).port or 0):
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator(".column.stale")).to_have_count(0)
        expect(text_of(page)).to_have_value("A [MASK] film.")
        expect(fills(page, "starting")).to_have_count(5)
        expect(chip(page, "film")).to_be_visible()


# ---------------------------------------------------------------- untrusted text


def assert_harmless(page: Page) -> None:
    assert page.evaluate("window.attacked") is None
    found = "document.querySelectorAll('script, img, iframe, style, form, a, math, object, embed').length"
    assert page.evaluate(found) == 2  # the script and the style of the page itself
    names = page.locator("*").evaluate_all("all => all.flatMap(each => each.getAttributeNames())")
    assert not [name for name in names if name.startswith("on")]
    expect(page.locator("h1")).to_be_visible()


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_is_never_read_as_html(open_page: Open, address: str, stub: Stub, tmp_path: Path, attack: str) -> None:
    run = tmp_path / "run"
    bad = {name: attack for name in ("loss", "learning_rate", "val_loss", "val_perplexity", "seconds")}
    write_events(run, [START, step_event(5), epoch_event(1) | bad, step_event(25) | {"epoch": attack}])
    write_events(run, [{"event": attack, "step": 30, attack: attack}])
    stub.models[0] |= {"name": attack, "title": attack}
    stub.models[1] |= {"title": attack, "role": "model"}
    stub.fills[attack] = [(attack, 0.5), ("film", 0.1)]
    stub.fills[STARTING] = [(attack, 0.4)]
    stub.words = {attack: r"\w+", STARTING: r"\w+", ADAPTED: r"\S+"}
    stub.examples, stub.runs = [attack], {attack: run}
    stub.failures = [("/page/score", 400, {"error": attack})]
    page = open_page(address, failures=True, text=f"{attack} [MASK]", word=attack, model=[attack, STARTING])
    expect(page.locator("#models")).to_contain_text(attack)
    expect(page.locator("#examples li")).to_have_text(attack)
    expect(page.locator("#chips")).to_contain_text(attack)
    expect(page.locator(".token", has_text=attack)).to_have_count(2)
    assert_harmless(page)
    page.locator(".token", has_text=attack).first.click()
    expect(text_of(page)).to_have_value(f"{attack} {attack}")
    page.get_by_role("tab", name="Surprise").click()
    expect(page.locator("#score-problems")).to_contain_text(attack)
    expect(page.locator("#scored")).to_contain_text(re.sub(r"\s+", " ", attack)[:1])
    page.locator("#scored").get_by_role("button").first.click()
    assert_harmless(page)
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator("#runs strong")).to_have_text(attack)
    expect(page.locator(".curve").first).to_be_attached()
    page.locator("summary").click()
    expect(page.locator("caption", has_text=attack)).to_be_visible()
    assert_harmless(page)


# ---------------------------------------------------------------- everyone


def test_the_keyboard_is_enough(open_page: Open, address: str, stub: Stub, tmp_path: Path) -> None:
    write_events(tmp_path / "run", [START, step_event(5), step_event(10)])
    stub.runs = {ADAPTED: tmp_path / "run"}
    page = open_page(address, text="A great film.")
    expect(chip(page, "great")).to_be_visible()
    focused = page.locator(":focus")

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)
            outline = page.evaluate(
                "() => { const each = document.activeElement;"
                " return getComputedStyle(each.closest('.choice label') ?? each).outline }"
            )
            assert "solid 2px" in outline, (key, outline)

    press("Tab")
    expect(focused).to_have_accessible_name(re.compile("adapted model"))
    press("Tab", "Tab")
    expect(focused).to_have_text("Dark theme")
    press("Tab")
    expect(focused).to_have_role("tab")
    press("Tab")
    expect(text_of(page)).to_be_focused()
    press("Tab")
    expect(chip(page, "A")).to_be_focused()
    press("ArrowRight", "Enter")
    expect(text_of(page)).to_have_value("A [MASK] film.")
    expect(fills(page, "adapted")).to_have_count(5)
    expect(fills(page, "starting")).to_have_count(5)
    expect(focused).to_have_accessible_name("[MASK] 1: Restore “great”")
    press("Tab", "Tab")
    expect(focused).to_have_accessible_name("movie, 32%")
    press("Enter")
    expect(text_of(page)).to_have_value("A movie film.")
    expect(chip(page, "movie")).to_be_focused()
    press("Space")
    expect(text_of(page)).to_have_value("A [MASK] film.")
    press("Space")
    expect(text_of(page)).to_have_value("A movie film.")
    press("Shift+Tab", "Shift+Tab", "ArrowRight")
    expect(page.get_by_role("tabpanel", name="Surprise")).to_be_visible()
    expect(page.locator("#scored small")).to_have_count(4)
    press("Tab", "Tab")
    expect(page.get_by_role("radio", name="difference")).to_be_focused()
    press("ArrowLeft")
    expect(page.get_by_role("radio", name="starting model")).to_be_checked()
    press("Tab", "End", "ArrowLeft")
    expect(page.locator("#word-readout")).to_contain_text("film")
    press("Enter", "Tab")
    expect(focused).to_have_text("Mask word")
    press("Enter")
    expect(text_of(page)).to_have_value("A movie [MASK].")
    expect(page.get_by_role("tab", name="Type")).to_be_focused()
    press("End")
    expect(page.get_by_role("tabpanel", name="Curves")).to_be_visible()
    expect(page.get_by_role("slider")).to_have_count(3)
    press("Tab")
    expect(page.get_by_role("slider", name="Loss, step")).to_be_focused()
    press("Tab", "Tab", "Tab", "Enter")
    expect(page.get_by_role("table", name=ADAPTED)).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_violation(
    open_page: Open, address: str, stub: Stub, tmp_path: Path, theme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="requires axe-playwright-python").Axe()
    write_events(tmp_path / "run", [START, step_event(5), step_event(20), epoch_event(1)])
    stub.runs = {ADAPTED: tmp_path / "run", STARTING: tmp_path / "run"}
    stub.states = {ADAPTED: "running"}

    def check(page: Page) -> None:
        page.wait_for_timeout(200)  # the end of transitions
        results = axe.run(page)
        assert results.violations_count == 0, results.generate_report()

    page = open_page(address, width=width, theme=theme, failures=True, text="A great [MASK] and a [MASK].")
    expect(fills(page, "adapted", 2)).to_have_count(5)
    expect(chip(page, "great")).to_be_visible()
    check(page)
    chip(page, "great").hover()
    check(page)
    text_of(page).fill("One of the finest films, and a haunting score.")
    page.get_by_role("tab", name="Surprise").click()
    for lens in ("adapted model", "starting model", "difference"):
        page.locator("#lens label", has_text=lens).click()
        expect(page.locator("#scored small")).to_have_count(11)
        check(page)
    page.locator("#scored").get_by_role("button").first.click()
    check(page)
    page.get_by_role("tab", name="Curves").click()
    page.locator("summary").click()
    page.get_by_role("slider").first.focus()
    check(page)
    stub.failures = [(path, 400, {"error": "Refused."}) for path in ("/page/fill", "/page/segments")]
    page.get_by_role("tab", name="Type").click()
    text_of(page).fill("Refused [MASK].")
    expect(page.locator("#text-problem")).to_have_text("Refused.")
    check(page)


def test_the_theme_follows_the_system_until_it_is_chosen(open_page: Open, address: str) -> None:
    page = open_page(address, theme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(19, 21, 24)"
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(background) == "rgb(251, 251, 249)"
    page.reload()
    expect(page.get_by_role("button", name="Dark theme")).to_be_visible()
    assert page.evaluate(background) == "rgb(251, 251, 249)"


def test_reduced_motion_has_no_transitions(open_page: Open, address: str) -> None:
    page = open_page(address, text="A [MASK].")
    duration = "getComputedStyle(document.querySelector('.column')).transitionDuration"
    expect(fills(page, "adapted")).to_have_count(5)
    assert page.evaluate(duration) == "0.15s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(duration) == "0s"


@pytest.mark.parametrize("width", [320, 360, 1600])
def test_nothing_is_wider_than_the_window(
    open_page: Open, address: str, stub: Stub, tmp_path: Path, width: int
) -> None:
    long = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    write_events(tmp_path / "run", [START, step_event(5), step_event(20), epoch_event(1)])
    stub.models[0]["title"] = long
    stub.runs, stub.states = {ADAPTED: tmp_path / "run", long: tmp_path / "run"}, {ADAPTED: "running"}
    stub.fills[ADAPTED][0] = (long, 0.5)
    stub.examples.append(long)
    page = open_page(address, width=width, text=f"{long} is a [MASK] of {MASK} {'word ' * 30}")

    def assert_fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    expect(fills(page, "adapted")).to_have_count(5)
    expect(chip(page, long)).to_be_visible()
    assert_fits()
    text_of(page).fill(f"{long} is {'a word ' * 30}")
    page.get_by_role("tab", name="Surprise").click()
    expect(page.locator("#scored small").first).to_be_visible()
    assert_fits()
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator(".curve").first).to_be_attached()
    page.locator("summary").click()
    assert_fits()


# ---------------------------------------------------------------- the real server


@pytest.fixture(scope="module")
def run_server(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`tf-mlm serve` with a run and, as the other model, a copy of its model with other weights. Yields the address."""
    other = tmp_path_factory.mktemp("other") / "other-model"
    shutil.copytree(finished_run / "model", other)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tf_mlm", "serve", str(finished_run), str(other), "--port", str(port)]
    address = f"http://127.0.0.1:{port}/"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, process.communicate()[0]
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}healthz").close()
                    break
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.communicate()


def test_the_page_shows_what_the_run_answers(open_page: Open, run_server: str, finished_run: Path) -> None:
    text = "This is a [MASK] film."
    page = open_page(run_server, text=text)
    rows = page.locator(".column.model-0 .fill")
    expect(rows).to_have_count(8)
    expect(page.locator(".column.model-1 .fill")).to_have_count(8)
    (answer,) = tf_mlm.load(finished_run).fill(text, top_k=8)
    expect(rows.locator(".token")).to_have_text([fill.token for fill in answer.fills[0]])
    chip(page, "film").click()
    expect(text_of(page)).to_have_value("This is a [MASK] [MASK].")
    expect(page.locator(".mask-fills")).to_have_count(2)
    expect(page.locator(".column.stale")).to_have_count(0)
    page.locator(".mask-fills").nth(1).locator(".fill").first.click()
    expect(text_of(page)).to_have_value(re.compile(r"This is a \[MASK\] \S+\."))
    expect(page.locator(".mask-fills")).to_have_count(1)


def test_the_page_shows_the_scores_and_the_curves_of_the_run(
    open_page: Open, run_server: str, finished_run: Path
) -> None:
    text = "A good film, isn't it?"
    page = open_page(run_server, view="surprise", text=text)
    (scored,) = tf_mlm.load(finished_run).score(text)
    page.locator("#lens label").first.click()
    expect(page.locator("#scored .word")).to_have_text(
        [f"{word.word}{shown(word.log_probability)}" for word in scored.words]
    )
    expect(page.locator("#sums tbody tr").first).to_contain_text(shown(scored.log_probability))
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator("#runs")).to_contain_text("Step 30 of 30, epoch 3 of 3")
    expect(page.locator("#runs")).to_contain_text("lowest validation loss")
    page.locator("summary").click()
    expect(page.locator("#tables tbody tr")).to_have_count(4)  # before training, and 3 epochs

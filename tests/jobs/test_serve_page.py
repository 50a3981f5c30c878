"""The page of `serve` in headless Chromium, with both bundled captioners."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import chromium
from tests.jobs.served import served

pytestmark = pytest.mark.slow

#: The folder for screenshots; none are kept unless it is set.
SCREENSHOTS = "CAPTIONING_SCREENSHOTS"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(["flickr-lstm", "flickr-clip-gpt2"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as found:
        yield found


@pytest.fixture(params=[(1280, 800, "light"), (390, 844, "dark")], ids=["desktop-light", "phone-dark"])
def page(request, browser, url: str) -> Iterator[object]:
    width, height, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 600
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []

    def hear(message) -> None:
        # Chromium itself logs every answer of status 4xx.
        if message.type in ("error", "warning") and "status of 422" not in message.text:
            wrong.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda failed: wrong.append(failed.url) if "ERR_ABORTED" not in failed.failure else None)
    elsewhere: list[str] = []
    page.on(
        "request",
        lambda asked: elsewhere.append(asked.url) if not asked.url.startswith((url, "blob:", "data:")) else None,
    )
    page.goto(url)
    settled(page)
    yield page
    folder = os.environ.get(SCREENSHOTS)
    if folder:
        page.screenshot(path=f"{folder}/{request.node.name}.png", full_page=True)
    context.close()
    assert wrong == []
    assert elsewhere == []


def settled(page) -> None:
    """Wait until no caption is pending."""
    page.locator(".card:not(.busy) .times, .card:not(.busy) .error").nth(1).wait_for()


def captions(page) -> list[str]:
    return [text.strip() for text in page.locator(".card .caption").all_inner_texts()]


def change(page, name: str, value: object) -> None:
    with page.expect_response("**/caption"):
        page.locator(f"#{name}").fill(str(value))
    page.wait_for_timeout(300)
    settled(page)


def test_a_photo_is_dropped_and_captioned_by_both(page) -> None:
    before = captions(page)
    assert len(before) == 2
    assert all(before)
    name = page.evaluate("photos.find(each => each.name === 'coffee')?.source || photos.at(-1).source")
    with page.expect_response("**/caption"):
        page.evaluate(
            """async source => {
                const blob = await (await fetch(source)).blob();
                const data = new DataTransfer();
                data.items.add(new File([blob], "mine.jpg", {type: "image/jpeg"}));
                window.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
            }""",
            name,
        )
    page.wait_for_timeout(300)
    settled(page)
    assert captions(page) != before
    assert page.locator(".stage img").get_attribute("alt") == "mine.jpg"
    assert page.locator("#strip button[aria-pressed=true]").get_attribute("aria-label") == "mine.jpg"
    assert captions(page)[0] in page.locator("#said").inner_text()


def test_a_chosen_file_that_is_no_image_is_reported(page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<html>no photo</html>")
    with page.expect_response("**/caption") as answered:
        page.locator("#file").set_input_files(bad)
    assert answered.value.status == 422
    page.wait_for_selector(".card .error")
    settled(page)
    assert "HTML" in page.locator(".card .error").first.inner_text()


def test_sliders_and_the_prompt_change_the_captions(page) -> None:
    change(page, "max_new_tokens", 4)
    assert all(len(text.split()) <= 4 for text in captions(page))
    change(page, "max_new_tokens", 20)
    change(page, "beam_size", 5)
    change(page, "num_alternatives", 5)
    assert page.locator(".card").first.locator("ol li").count() == 5
    assert page.locator("#num_alternatives-out").inner_text() == "5"
    change(page, "prompt", "two dogs")
    assert all(text.startswith("two dogs") for text in captions(page))
    assert "prompt=two dogs" in page.locator("#curl").text_content()


def test_the_heat_map_opens_word_by_word(page) -> None:
    words = page.locator(".words button")
    assert words.count() > 2
    words.nth(1).focus()
    page.wait_for_selector(".stage.looking")
    assert page.locator(".told").inner_text() == words.nth(1).inner_text()
    seen = page.evaluate("stage.querySelector('canvas').toDataURL()")
    words.nth(2).focus()
    assert page.evaluate("stage.querySelector('canvas').toDataURL()") != seen
    page.wait_for_timeout(300)


def test_the_keyboard_alone_is_enough(page) -> None:
    reached: list[str] = []
    page.locator("body").click(position={"x": 2, "y": 2})
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """(e => e.id || (e.dataset.at !== undefined ? 'word' : e.closest('#strip') ? 'photo' : e.tagName))
            (document.activeElement)"""
        )
        outline = page.evaluate(
            """(e => getComputedStyle(e.matches('#file') ? e.nextElementSibling : e).outlineStyle)
            (document.activeElement)"""
        )
        assert at == "BODY" or outline != "none", f"{at} has no visible focus"
        reached.append(at)
        if at == "prompt":
            break
    assert {"file", "photo", "word", "beam_size", "max_new_tokens", "repetition_penalty", "prompt"} <= set(reached)
    before = captions(page)
    page.locator("#strip button").nth(2).focus()
    with page.expect_response("**/caption"):
        page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    settled(page)
    assert captions(page) != before
    page.locator("#max_new_tokens").focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(600)
    settled(page)
    assert page.locator("#max_new_tokens-out").inner_text() == "1"
    assert all(len(text.split()) <= 1 for text in captions(page))

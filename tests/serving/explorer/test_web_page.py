"""The page in a real browser, by keyboard and on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asking import queries_of, settings, store_users
from page_server import HandMade, serve
from publishing import Published
from running import running

from recsys.release.runtime.retriever import Retriever

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`: playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (or CHROMIUM=path)")]

OLD, NEW = "0ld0000000000000", "4e40000000000000"
BIG = 2**60 + 1
EVIL = "<img src=x onerror=\"document.title='bad'\">"


def hand_made() -> HandMade:
    """Twelve items on an arc: neighbours in number are neighbours in space; the other release turns it round."""
    ids = [*range(1, 12), BIG]
    titles = [f"Film {number}" for number in range(1, 11)] + [EVIL, "The last film"]
    angles = np.arange(12) * 0.1
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pictures = ["https://pictures.test/1.svg", None, "https://pictures.test/broken.svg", *[None] * 9]
    items = pa.table({"item_id": ids, "title": titles, "year": [1990 + n for n in range(12)], "image_url": pictures})
    events = [{"item_id": number, "timestamp": 86400 * number} for number in (1, 2)]
    histories: dict[int | str, list[dict[str, int]]] = {7: events, "7": [{"item_id": BIG, "timestamp": 5}], BIG: events}
    state = {"films": {"serving": OLD, "loaded": [OLD]}}
    return HandMade(items, {OLD: arc, NEW: arc[:, ::-1] * 0.5 + arc}, histories, {"one:1": state, "two:1": state})


@pytest.fixture
def made() -> HandMade:
    return hand_made()


@pytest.fixture
def url(made: HandMade) -> Iterator[str]:
    with serve(made) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    yield opened
    assert wrong == []
    context.close()


def names(page: sync_api.Page, number: int = 0) -> list[str]:
    return page.locator(".list").nth(number).locator(".items b").all_text_contents()


def ask(page: sync_api.Page, user: str) -> None:
    page.get_by_label("User", exact=True).fill(user)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Recommend").click()
    page.locator(".items li").first.wait_for()


def retrieves(made: HandMade) -> list[dict[str, object]]:
    return [body for path, body in made.requests if path == "/v1/retrieve"]


def test_a_user_is_found_by_keyboard_alone(page: sync_api.Page, url: str, made: HandMade) -> None:
    page.goto(f"{url}#k=20")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answers"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "user"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.type("7")
    options = page.locator("[role=option]")
    sync_api.expect(options).to_have_text(["7number", "7text"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert not options.first.is_visible()
    page.keyboard.press("ArrowDown")
    # The list is asked for again.
    sync_api.expect(options.first).to_be_visible()
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.getAttribute('aria-activedescendant')") == "user-list-1"
    page.keyboard.press("Enter")
    page.locator(".items li").first.wait_for()
    assert retrieves(made) == [{"user_id": "7", "k": 20}]
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert reached[:5] == ["sample", "k", "release", "beside", None]
    assert reached[5].startswith("Add ")


def test_items_come_with_titles_reasons_and_history(page: sync_api.Page, url: str) -> None:
    page.goto(f"{url}#k=20")
    page.get_by_label("User", exact=True).fill("7")
    page.locator("[role=option]").first.click()
    page.locator(".items li").first.wait_for()
    # History 1 and 2: item 3 is next to 2, then to 1 (cosines .995 and .980, of 0.1 and 0.2).
    assert names(page)[:2] == ["Film 3", "Film 4"]
    first = page.locator(".items li").first
    assert first.locator(".reasons").inner_text() == "similar to Film 2 0.99, Film 1 0.98"
    assert first.locator("small").first.inner_text() == "item 3 · year 1992"
    assert page.locator("#events b").all_text_contents() == ["Film 2", "Film 1"]
    assert "1970-01-03" in page.locator("#events li").first.inner_text()
    assert page.locator(".latency").inner_text().endswith(" ms")
    first.hover()
    assert page.locator("#events li.because").count() == 2
    page.locator("h1").hover()
    assert page.locator("#events li.because").count() == 0


def test_the_first_load_shows_a_user_and_a_button_another(page: sync_api.Page, url: str, made: HandMade) -> None:
    page.goto(url)
    sync_api.expect(page.locator("#answers-heading")).to_have_text("Recommended for user 7")
    assert retrieves(made) == [{"user_id": 7, "k": 20}]
    # The first answer already shows the message, so only the second response ends the wait.
    with page.expect_response("**/v1/retrieve"):
        page.get_by_role("button", name="Another user").click()
    sync_api.expect(page.locator("#message")).to_contain_text("items from")
    page.wait_for_function("document.querySelectorAll('.items li').length > 0")
    assert len(retrieves(made)) == 2
    assert retrieves(made)[1]["user_id"] in ("7", BIG)


# The mean of the arc has the length .941, and the angles between it and the items are .05 to .55.
@pytest.mark.parametrize(
    ("similarity", "head", "widths"),
    [("cosine", "similarity", ["94%", "80%"]), ("dot", "score", ["100%", "85%"])],
)
def test_bars_show_similarity_and_not_rank(
    page: sync_api.Page, url: str, made: HandMade, *, similarity: str, head: str, widths: list[str]
) -> None:
    made.explorers[OLD].similarity = similarity
    page.goto(f"{url}#k=20")
    ask(page, "nobody")
    assert page.locator(".heads span").all_text_contents() == ["rank and item", head]
    bars = page.locator(".bar i").evaluate_all("(bars) => bars.map((bar) => bar.style.width)")
    assert [bars[0], bars[-1]] == widths
    scores = page.locator(".score").all_text_contents()
    assert [scores[0], scores[-1]] == ["0.94", "0.80"]


def test_text_of_items_stays_text(page: sync_api.Page, url: str) -> None:
    page.goto(f"{url}#k=20")
    ask(page, "7")
    assert EVIL in names(page)
    assert page.title() == "recsys"


def test_ids_beyond_53_bits_stay_exact(page: sync_api.Page, url: str, made: HandMade) -> None:
    page.goto(f"{url}#k=20")
    page.get_by_label("User", exact=True).fill(str(BIG)[:6])
    # The list of the empty field may come first.
    sync_api.expect(page.locator("[role=option]")).to_have_text([str(BIG)])
    page.locator("[role=option]").first.click()
    page.locator(".items li").first.wait_for()
    assert retrieves(made) == [{"user_id": BIG, "k": 20}]
    page.reload()
    page.locator(".items li").first.wait_for()
    assert retrieves(made)[-1]["user_id"] == BIG
    page.get_by_role("button", name="Add The last film to the history").click()
    page.locator("#chosen li").nth(2).wait_for()
    sync_api.expect(page.locator("#history-length")).to_contain_text("3 items")
    assert retrieves(made)[-1]["history"] == [{"item_id": 1}, {"item_id": 2}, {"item_id": BIG}]


def test_a_history_is_put_together_pasted_and_shortened(page: sync_api.Page, url: str, made: HandMade) -> None:
    page.goto(f"{url}#k=20")
    page.get_by_label("a history").check()
    field = page.get_by_label("Items of the history")
    field.press_sequentially("film 3")
    page.locator("[role=option]").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    field.evaluate(
        "(input, text) => { const data = new DataTransfer(); data.setData('text', text);"
        "input.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})); }",
        "4\nThe last\r\nfilm\n\nno such",
    )
    sync_api.expect(page.locator("#message")).to_have_text(
        "1 of 4 names match several items; the most frequent item was added. Not found: “no such”."
    )
    assert page.locator("#chosen li").all_text_contents() == ["Film 3×", "Film 4×", "The last film×", "Film 1×"]
    page.get_by_role("button", name="Remove Film 4").click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove The last film"
    field.press("Enter")
    page.locator(".items li").first.wait_for()
    assert retrieves(made) == [{"history": [{"item_id": 3}, {"item_id": BIG}, {"item_id": 1}], "k": 20}]


def test_an_item_joins_the_history_and_the_focus_stays(page: sync_api.Page, url: str, made: HandMade) -> None:
    page.goto(f"{url}#k=20")
    ask(page, "nobody")
    page.locator(".plus").first.focus()
    page.keyboard.press("Enter")
    page.locator("#chosen li").wait_for()
    sync_api.expect(page.locator("#history-length")).to_contain_text("1 item,")
    assert page.evaluate("document.activeElement.id") == "answers"
    assert len(retrieves(made)[-1]["history"]) == 1  # type: ignore[arg-type]


def test_two_releases_side_by_side(page: sync_api.Page, url: str, made: HandMade) -> None:
    made.hosts["two:1"] = {"films": {"serving": OLD, "loaded": [OLD, NEW]}}
    page.goto(f"{url}#k=20")
    page.locator(f"#beside option[value='{NEW}']").wait_for(state="attached")
    page.select_option("#release", OLD)
    page.select_option("#beside", NEW)
    page.select_option("#k", "10")
    ask(page, "7")
    assert retrieves(made) == [{"user_id": "7", "k": 10, "version": version} for version in (OLD, NEW)]
    lists = page.locator(".list")
    assert [lists.nth(at).get_attribute("aria-label") for at in (0, 1)] == [f"Release {OLD}", f"Release {NEW}"]
    left, right = names(page, 0), names(page, 1)
    common = len(set(left) & set(right))
    assert page.locator(".both").inner_text() == f"{common} of 10 items are in both"
    for at, name in enumerate(right):
        told = lists.nth(1).locator(".move").nth(at).get_attribute("aria-label")
        if name not in left:
            assert told == "not in the other list"
        elif left.index(name) == at:
            assert told == "same rank in the other list"
        else:
            assert told == f"rank {left.index(name) + 1} in the other list"
    first, second = lists.nth(0).bounding_box(), lists.nth(1).bounding_box()
    assert first is not None
    assert second is not None
    assert first["y"] == second["y"]


def test_a_rollout_is_seen_as_it_happens(page: sync_api.Page, url: str, made: HandMade) -> None:
    page.goto(f"{url}#k=20")
    drawn = page.locator(".timeline")
    sync_api.expect(drawn).to_have_attribute("aria-label", f"{LABEL} {OLD[:8]} 100%")
    made.hosts["two:1"] = {"films": {"serving": NEW, "loaded": [OLD, NEW]}}
    sync_api.expect(drawn).to_have_attribute("aria-label", f"{LABEL} {OLD[:8]} 50%, {NEW[:8]} 50%")
    two = page.locator(".hostlist li", has_text="two:1")
    assert two.locator(".chip").all_text_contents() == [f"{NEW[:8]} serving", f"{OLD[:8]} loaded"]
    made.hosts["one:1"] = None
    sync_api.expect(drawn).to_have_attribute("aria-label", f"{LABEL} {NEW[:8]} 50%")
    assert "does not answer" in page.locator(".hostlist li", has_text="one:1").inner_text()
    assert drawn.locator("rect").count() >= 4


LABEL = "Share of hosts that serve each version during the last 90 seconds; now"


def test_errors_are_shown(page: sync_api.Page, url: str, made: HandMade) -> None:
    page.goto(f"{url}#k=20")
    page.get_by_role("button", name="Recommend").click()
    assert page.locator("#message").inner_text() == "Type the id of a user."
    assert page.evaluate("document.activeElement.id") == "user"
    made.hosts = {"one:1": {"films": {"serving": "gone", "loaded": ["gone"]}}}
    page.get_by_label("User", exact=True).fill("7")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Recommend").click()
    assert page.get_by_role("alert").inner_text() == "no 'gone'"


def test_pictures_take_their_place_before_they_come(page: sync_api.Page, url: str) -> None:
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    asked = []

    def answer(route: sync_api.Route) -> None:
        asked.append(route.request)
        if "broken" in route.request.url:
            route.fulfill(status=404)
        else:
            route.fulfill(content_type="image/svg+xml", body=drawing)

    page.route("https://pictures.test/**", answer)
    page.goto(f"{url}#k=20")
    ask(page, "nobody")
    page.wait_for_function("document.querySelectorAll('.picture img').length === 1")
    frames = page.locator(".picture")
    assert frames.count() == 12
    box = frames.last.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (56, 56)
    assert all("referer" not in request.headers for request in asked)


@pytest.mark.parametrize(("width", "height"), [(320, 640), (360, 740), (768, 1024), (1280, 900)])
def test_nothing_moves_and_nothing_is_cut(
    browser: sync_api.Browser, url: str, made: HandMade, width: int, height: int
) -> None:
    made.hosts["two:1"] = {"films": {"serving": OLD, "loaded": [OLD, NEW]}}
    # Longer than what browsers forgive after a key was pressed (0.5 s).
    made.delay = 0.7
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500)
    page = context.new_page()
    page.add_init_script(
        "window.shifted = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries())"
        "if (!entry.hadRecentInput) window.shifted += entry.value; }).observe({type: 'layout-shift', buffered: true});"
    )
    page.goto(f"{url}#k=20")
    page.locator(".hostlist").wait_for()
    ask(page, "7")
    page.wait_for_timeout(1200)
    assert page.evaluate("window.shifted") < 0.01
    page.select_option("#beside", NEW)
    page.get_by_role("button", name="Recommend").click()
    page.locator(".lists.two").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width < 500:
        small = page.evaluate(
            "[...document.querySelectorAll('button, select, input:not([type=radio])')]"
            ".filter((one) => one.offsetParent && one.getBoundingClientRect().height < 36).length"
        )
        assert small == 0
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_either_ground(browser: sync_api.Browser, url: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{url}#k=20")
    ask(page, "7")
    page.locator(".hostlist").wait_for()
    ratios = page.evaluate(CONTRASTS)
    assert min(ratios.values()) >= 4.5, ratios
    context.close()


# WCAG's contrast of every text with the first ground below it.
CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
  };
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x);
    const key = `${element.tagName}.${element.className}`;
    found[key] = Math.min(found[key] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return found;
}"""


def test_the_page_is_its_own_files_alone(browser: sync_api.Browser, url: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}#k=20")
    page.locator(".hostlist").wait_for()
    assert all(address.startswith(url) for address in asked)
    assert page.evaluate("Boolean(document.querySelector('script:not([src]), style, [style], [onclick]'))") is False
    # A script that got in would not run.
    page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'document.title = 1';"
        "document.body.append(script); }"
    )
    assert page.title() == "recsys"
    page.close()


def test_the_page_of_a_real_server(page: sync_api.Page, published: Published, tmp_path: Path) -> None:
    """Titles, reasons and two releases, from what a gateway answers."""
    queries = queries_of(published)
    store_users(tmp_path / "events.sqlite", queries)
    first, other = published.versions
    user, query = max(queries.items(), key=lambda pair: len(pair[1].history))
    expected = Retriever.load(published.store, first).retrieve([query], 10)[0].item_ids
    with running(settings(published, tmp_path / "events.sqlite", release=first)) as url:
        headers = {"authorization": "Bearer secret-of-the-tests", "content-type": "application/json"}
        loaded = page.request.post(f"{url}/v1/admin/load", headers=headers, data={"version": other})
        assert loaded.status == 200
        page.goto(f"{url}#k=20")
        page.locator(f"#beside option[value='{other}']").wait_for(state="attached")
        page.select_option("#k", "10")
        page.select_option("#beside", other)
        page.get_by_label("User", exact=True).press_sequentially(user)
        page.locator("[role=option]").first.wait_for()
        page.keyboard.press("Enter")
        page.locator(".lists.two").wait_for()
    titles = {row["item_id"]: row["title"] for row in pq.read_table(published.root / "items.parquet").to_pylist()}
    assert names(page) == [titles.get(item_id, item_id) for item_id in expected]
    assert page.locator(".list").nth(1).get_attribute("aria-label") == f"Release {other}"
    assert page.locator(".list").first.locator(".reasons").count() > 0
    past = [titles.get(event["item_id"], event["item_id"]) for event in reversed(query.history)]
    assert page.locator("#events b").all_text_contents() == past

"""The slider in a real browser: a static page, two players, no kernel and no network."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageColor

from companion import show
from companion.show import player

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="slider not tried in a browser: no Chromium on this machine"),
]

LABELS = ("m / n", "γ")
VALUES = (0.05, 0.1, 0.2)
TINTS = ("#aa0000", "#00aa00", "#0000aa")


def draw(value):
    fig, ax = show.figure(height=2)
    ax.set_facecolor(TINTS[VALUES.index(value)])
    return fig


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    players = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(player, "emit", lambda bundle: players.append(bundle["text/html"]))
        for label in LABELS:
            show.explore(draw, VALUES, label=label, alts=lambda value, of=label: f"{of} at {value}", caption="Frames.")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    dark = "<style>@media (prefers-color-scheme: dark){body{background:#121212;color:#eee}}</style>"
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(f"{head}<title>Players</title>{dark}<body>{''.join(players)}", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, page_file):
    contexts = []

    def open_page(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.requested, page.problems = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def shown(page, index):
    return [image.get_attribute("alt") for image in page.locator("figure").nth(index).locator("img:visible").all()]


def test_slider_swaps_frame_and_alt_text_and_leaves_the_other_player_alone(opened):
    page = opened()
    assert [shown(page, index) for index in (0, 1)] == [["m / n at 0.05"], ["γ at 0.05"]]
    slider = page.get_by_role("slider", name="m / n")
    slider.fill("2")
    assert [shown(page, index) for index in (0, 1)] == [["m / n at 0.2"], ["γ at 0.05"]]
    assert slider.get_attribute("aria-valuetext") == "0.2"
    assert page.locator("[data-value]").all_inner_texts() == ["0.2", "0.05"]
    assert page.problems == []


def test_no_request_leaves_the_machine(opened, page_file):
    page = opened()
    page.get_by_role("slider", name="γ").fill("1")
    assert [url for url in page.requested if not url.startswith("data:")] == [page_file.as_uri()]


def test_keyboard_moves_the_slider_and_focus_is_seen(opened):
    page = opened()
    for _ in range(2):
        page.keyboard.press("Tab")
    second = page.get_by_role("slider", name="γ")
    assert second.evaluate("input => input === document.activeElement")
    assert second.evaluate("input => getComputedStyle(input).outlineWidth") == "3px"
    for key, alt in (
        ("ArrowRight", "γ at 0.1"),
        ("End", "γ at 0.2"),
        ("Home", "γ at 0.05"),
        ("ArrowLeft", "γ at 0.05"),
    ):
        page.keyboard.press(key)
        assert shown(page, 1) == [alt]
    assert shown(page, 0) == ["m / n at 0.05"]


def test_frames_decode_and_differ(opened, tmp_path):
    page = opened()
    frame = page.locator("figure").first.locator("img:visible")
    for step, tint in enumerate(TINTS):
        page.get_by_role("slider", name="m / n").fill(str(step))
        frame.screenshot(path=tmp_path / "frame.png")
        pixels = np.asarray(Image.open(tmp_path / "frame.png").convert("RGB"))
        middle = pixels[pixels.shape[0] // 3, pixels.shape[1] // 2]
        assert np.abs(middle.astype(int) - ImageColor.getrgb(tint)).max() < 40


def test_fits_a_phone_with_a_slider_large_enough_to_touch(opened):
    page = opened(viewport={"width": 320, "height": 640}, is_mobile=True, has_touch=True)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 320
    box = page.get_by_role("slider", name="m / n").bounding_box()
    assert box["height"] >= 40 and box["width"] >= 150
    assert page.locator("img:visible").first.bounding_box()["width"] >= 280


@pytest.mark.parametrize(("scheme", "colour"), [("light", "rgb(0, 0, 0)"), ("dark", "rgb(238, 238, 238)")])
def test_text_takes_the_pages_colour_and_images_keep_a_light_ground(opened, tmp_path, scheme, colour):
    page = opened(color_scheme=scheme)
    for part in ("label span", "[data-value]", "figcaption"):
        assert page.locator(part).first.evaluate("node => getComputedStyle(node).color") == colour
    page.locator("img:visible").first.screenshot(path=tmp_path / "frame.png")
    assert np.asarray(Image.open(tmp_path / "frame.png").convert("RGB"))[2, 2].min() > 240


def test_without_scripts_every_frame_is_there_and_no_dead_slider(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("img:visible").count() == 2 * len(VALUES)
    assert page.get_by_role("slider").count() == 0

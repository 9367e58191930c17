"""What the built pages must keep when a browser opens them from the disk, without a network."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without a sandbox it also runs as root in a container; the pages it opens are our own files.
FLAGS = ["--no-sandbox", "--disable-quic", "--disable-dev-shm-usage", "--disable-gpu"]
PHONE: ViewportSize = {"width": 360, "height": 740}
DESK: ViewportSize = {"width": 1280, "height": 900}
PATIENCE = 120_000  # milliseconds; a busy machine is no fault of the page


def executable() -> str | None:
    """A Chromium on PATH, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """An opened page: what it asked for, what failed, what its scripts complained of."""

    page: Page
    requests: list[str]
    failed: list[str]
    complaints: list[str]
    loaded: float  # time.monotonic()


@contextmanager
def visit(context: BrowserContext, path: Path) -> Iterator[Visit]:
    """Open a file with every other host cut off, and wait until formulas are set."""
    context.set_offline(True)  # a route for each request would ask this process about every file, too
    # One tab for all: a new one would start a process, which compiles MathJax again.
    page = context.pages[0] if context.pages else context.new_page()
    resize(page, DESK)
    seen = Visit(page, [], [], [], 0.0)
    listeners: dict[Any, Callable[[Any], None]] = {
        "request": lambda request: seen.requests.append(request.url),
        "requestfailed": lambda request: seen.failed.append(request.url),
        "pageerror": lambda error: seen.complaints.append(str(error)),
        "console": lambda line: seen.complaints.append(line.text) if line.type == "error" else None,
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    try:
        page.goto(path.resolve().as_uri(), wait_until="load")
        seen.loaded = time.monotonic()
        page.evaluate("async () => { if (window.MathJax?.startup) await MathJax.startup.promise }")
        yield seen
    finally:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        page.goto("about:blank")  # the next page gets nothing of this one's, nor is this one laid out for it


def no_other_host(seen: Visit) -> list[str]:
    """Not one request leaves the disk; scripts that start after loading had a fifth of a second for theirs."""
    seen.page.wait_for_timeout(max(0.0, 200 - 1000 * (time.monotonic() - seen.loaded)))
    return [f"asked for {url[:120]}" for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))]


def nothing_missing(seen: Visit) -> list[str]:
    """No request fails, no script raises, and the console shows no error."""
    return [f"failed: {url[:120]}" for url in seen.failed] + [f"console: {text[:120]}" for text in seen.complaints]


def settle(page: Page) -> None:
    """Wait until scripts and styles have followed a change: two frames, in which no transition is left half done."""
    page.evaluate(
        """async () => {
            const frame = () => new Promise(done => requestAnimationFrame(done));
            await frame();
            for (const each of document.getAnimations())
                if (each.effect?.getComputedTiming().endTime !== Infinity) each.finish();
            await frame();
        }"""
    )


def formulas_set(seen: Visit) -> list[str]:
    """MathJax set every formula, and none has an unknown macro or another error."""
    raw, errors = seen.page.evaluate(
        """() => [
            [...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container'))
                .map(m => m.textContent),
            // an undefined macro is no merror: MathJax sets its name in red
            [...document.querySelectorAll('mjx-container merror, mjx-container mtext[mathcolor="red"]')]
                .map(m => m.textContent),
        ]"""
    )
    return [f"not set: {text[:80]}" for text in raw] + [f"formula error: {text[:80]}" for text in errors]


SLIDER_STATE = """input => {
    const place = input.closest('.cell_output, .output, figure, section') || document.body;
    return [...place.querySelectorAll('img, svg, canvas')].filter(p => p.getClientRects().length)
        .map(p => p.tagName + (p.currentSrc || p.outerHTML)).join('|');
}"""
SLIDER_MOVE = """(input, value) => {
    input.value = value;
    for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, {bubbles: true}));
}"""


def sliders_work(seen: Visit) -> list[str]:
    """Moving a slider from end to end changes the picture beside it, and one picture at least is shown at both ends."""
    faults = []
    for number, slider in enumerate(seen.page.query_selector_all("article input[type=range]"), 1):
        states = []
        for end in ("min", "max"):
            slider.evaluate(SLIDER_MOVE, slider.get_attribute(end) or {"min": "0", "max": "100"}[end])
            settle(seen.page)
            states.append(slider.evaluate(SLIDER_STATE))
        if states[0] == states[1] or not all(states):
            faults.append(f"slider {number} changes no picture")
    return faults


LUMINANCE = """() => {
    const element = document.querySelector('article') || document.body;
    const number = text => text.match(/[\\d.]+/g).map(Number);
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let behind = element;
    while (behind && number(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const back = behind ? light(number(getComputedStyle(behind).backgroundColor)) : 1;
    return [light(number(getComputedStyle(element).color)), back];
}"""


def readable_in_both_modes(seen: Visit) -> list[str]:
    """Text stands out by at least 4.5 to 1 in light and dark mode, and dark mode is dark."""
    faults = []
    for mode in ("light", "dark"):
        seen.page.evaluate("mode => { document.documentElement.dataset.theme = mode }", mode)
        settle(seen.page)
        text, back = seen.page.evaluate(LUMINANCE)
        ratio = (max(text, back) + 0.05) / (min(text, back) + 0.05)
        if ratio < 4.5:
            faults.append(f"{mode} mode: contrast {ratio:.1f} to 1, not 4.5")
        if (back > 0.2) != (mode == "light"):
            faults.append(f"{mode} mode: background of luminance {back:.2f}")
    return faults


def resize(page: Page, size: ViewportSize) -> None:
    """Give the window a size, unless it has it: a long page is laid out anew each time, for half a second."""
    if page.viewport_size != size:
        page.set_viewport_size(size)
        settle(page)


def fits_a_phone(seen: Visit) -> list[str]:
    """At a width of 360 px the page does not scroll sideways."""
    resize(seen.page, PHONE)
    width = seen.page.evaluate("() => document.documentElement.scrollWidth")
    return [f"{width} px wide on a phone of {PHONE['width']} px"] if width > PHONE["width"] + 1 else []


WIDE = """() => [...document.querySelectorAll('article :not(mjx-container *)')]
    .filter(e => e.scrollWidth > e.clientWidth + 2 && e.clientWidth > 40
        && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
    .map(e => { e.scrollLeft = 0; return e; })"""
FADES = """boxes => boxes.map(e => [e.tagName + ' ' + e.textContent.trim().slice(0, 40),
    getComputedStyle(e).maskImage !== 'none', getComputedStyle(e).getPropertyValue('--fade-right')])"""


def wide_things_say_so(seen: Visit) -> list[str]:
    """On a phone, a formula, table or code that goes on beyond the edge fades there, and no more at its end."""
    resize(seen.page, PHONE)
    boxes = seen.page.evaluate_handle(WIDE)
    settle(seen.page)
    start = boxes.evaluate(FADES)
    boxes.evaluate("boxes => boxes.forEach(e => { e.scrollLeft = e.scrollWidth })")
    settle(seen.page)
    end = boxes.evaluate(FADES)
    faults = [f"does not show that it goes on: {name}" for name, masked, size in start if not masked or size == "0rem"]
    return faults + [f"still fades at its end: {name}" for name, masked, size in end if masked and size != "0rem"]


def figures_can_be_read(seen: Visit) -> list[str]:
    """On a phone no figure is shown at less than six tenths of the size that it was drawn for."""
    resize(seen.page, PHONE)
    shrunk = """() => [...document.querySelectorAll('article figure.companion-figure img[width]')]
        .map(e => [e.getBoundingClientRect().width / e.getAttribute('width'), e.alt.slice(0, 60)])"""
    return [f"shown at {share:.0%}: {alt!r}" for share, alt in seen.page.evaluate(shrunk) if share < 0.6]


def code_fits_the_desk(seen: Visit) -> list[str]:
    """At 1,280 pixels no code or printed text scrolls sideways."""
    resize(seen.page, DESK)
    wide = """() => [...document.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => e.textContent.trim().slice(0, 60))"""
    return [f"scrolls sideways: {text!r}" for text in seen.page.evaluate(wide)]


CHECKS: list[Callable[[Visit], list[str]]] = [
    formulas_set,
    sliders_work,
    readable_in_both_modes,
    code_fits_the_desk,
    fits_a_phone,
    wide_things_say_so,
    figures_can_be_read,
    no_other_host,  # at last, of all that was done before
    nothing_missing,
]

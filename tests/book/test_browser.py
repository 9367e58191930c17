"""The built pages in a headless Chromium, and proof that each check can fail."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import browser_checks
import pytest
from browser_checks import BrowserContext, Visit, visit
from site_checks import html_pages

pytestmark = pytest.mark.browser

HEAVIEST = 2_500_000  # bytes of a first visit, uncompressed
NEAR = 3_000  # pixels below the window's top within which a browser may load a picture before it is seen


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    """A fresh browser profile; skips where there is no browser."""
    if browser_checks.executable() is None:
        pytest.skip("no Chromium was found")
    with browser_checks.chromium() as browser:
        fresh = browser.new_context(viewport=browser_checks.DESK)
        fresh.set_default_timeout(browser_checks.PATIENCE)
        yield fresh


def faults(seen: Visit) -> dict[str, list[str]]:
    """Faults by check, of the checks that found any."""
    return {check.__name__: found for check in browser_checks.CHECKS if (found := check(seen))}


def test_pages_work_offline_in_a_browser(context: BrowserContext, site: Path) -> None:
    found = {}
    for page in html_pages(site):
        if page != site / "index.html":  # it only forwards to the first page
            with visit(context, page) as seen:
                found[page.relative_to(site).as_posix()] = faults(seen)
    assert {page: bad for page, bad in found.items() if bad} == {}


def test_front_door_leads_to_the_first_page(context: BrowserContext, site: Path) -> None:
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/book/intro.html")
    assert "Flow Priors" in page.title()
    page.close()


def test_search_finds_a_page_offline(context: BrowserContext, site: Path) -> None:
    page = context.new_page()
    page.goto((site / "search.html").as_uri() + "?q=inverse")
    page.wait_for_selector("#search-results li a")
    page.close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, uncompressed, without a word."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site as a web server gives it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_first_visit_is_light_and_loads_no_picture_far_below(
    context: BrowserContext, address: str, site: Path
) -> None:
    chapters = sorted((p for p in html_pages(site) if p.with_suffix(".ipynb").name in downloads(site)), key=size)
    assert context.browser is not None
    for chapter in [site / "index.html", *chapters[-2:]]:
        fresh = context.browser.new_context(viewport=browser_checks.DESK)  # nothing is in its cache
        fresh.set_default_timeout(browser_checks.PATIENCE)
        page = fresh.new_page()
        answers, errors = [], []
        page.on("response", lambda answer, kept=answers: kept.append(answer))
        page.on("console", lambda line, kept=errors: kept.append(line.text) if line.type == "error" else None)
        page.goto(f"{address}/{chapter.relative_to(site).as_posix()}", wait_until="networkidle")
        page.wait_for_timeout(500)
        bodies = [int(answer.headers["content-length"]) for answer in answers if answer.status < 300]
        far = page.evaluate(
            "far => [...document.querySelectorAll('article img')].filter(i => i.getClientRects().length "
            "&& i.complete && i.naturalWidth && i.getBoundingClientRect().top > far).map(i => i.src)",
            NEAR,
        )
        assert errors == []  # a missing favicon among them
        assert [answer.url for answer in answers if answer.status >= 400] == []
        assert sum(bodies) <= HEAVIEST, chapter.name
        assert far == [], chapter.name
        fresh.close()


def downloads(site: Path) -> set[str]:
    """Names of the chapters' notebooks."""
    return {path.name for path in (site / "_sources").rglob("*.ipynb")}


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


GOOD = """<html data-theme="light"><style>html {background: rgb(255,255,255); color: rgb(0,0,0)}
html[data-theme=dark] {background: rgb(10,10,10); color: rgb(240,240,240)} %s</style><body><article>
<figure><input type="range" min="0" max="1" value="0">
<svg id="a" width="9"></svg><svg id="b" width="9" style="display:none"></svg></figure>
<script>document.querySelector('input').addEventListener('input', event => { %s
    document.getElementById('a').style.display = event.target.value === '0' ? '' : 'none';
    document.getElementById('b').style.display = event.target.value === '1' ? '' : 'none'; })</script>%s</article>
</body></html>"""

BROKEN = {
    "no_other_host": ("", "", "<script>fetch('http://other.invalid/x').catch(() => 0)</script>"),
    "nothing_missing": ("", "", "<script src='missing.js'></script>"),
    "formulas_set": ("", "", r"<span class='math'>\(x\)</span>"),
    "sliders_work": ("", "return;", ""),
    "readable_in_both_modes": ("html[data-theme=dark] {color: rgb(40,40,40)}", "", ""),
    "fits_a_phone": ("", "", "<div style='width: 900px'>wide</div>"),
    "wide_things_say_so": ("", "", "<div style='overflow-x: auto'><div style='width: 900px'>wide</div></div>"),
    "figures_can_be_read": ("", "", "<figure class='companion-figure'><img width='700' style='width: 300px'></figure>"),
    "code_fits_the_desk": ("", "", f"<pre style='overflow-x: auto'>{400 * '='}</pre>"),
}


def opened(context: BrowserContext, folder: Path, parts: tuple[str, str, str]) -> dict[str, list[str]]:
    """Faults of the small page made from `parts`."""
    (folder / "page.html").write_text(GOOD % parts)
    with visit(context, folder / "page.html") as seen:
        return faults(seen)


def test_browser_checks_pass_a_sound_page(context: BrowserContext, tmp_path: Path) -> None:
    assert opened(context, tmp_path, ("", "", "")) == {}


@pytest.mark.parametrize("check", [check.__name__ for check in browser_checks.CHECKS])
def test_browser_check_can_fail(context: BrowserContext, tmp_path: Path, check: str) -> None:
    assert check in opened(context, tmp_path, BROKEN[check])


def test_undefined_macro_is_found(context: BrowserContext, site: Path, tmp_path: Path) -> None:
    script = (site / "_static" / "mathjax" / "startup.js").as_uri()
    load = "<script>MathJax = {loader: {load: ['core', 'input/tex', 'output/chtml', 'a11y/assistive-mml']}}</script>"
    formula = r"<span class='math'>\(\nosuchmacro x\)</span>"
    parts = ("", "", f"{formula}{load}<script defer src='{script}'></script>")
    assert "nosuchmacro" in str(opened(context, tmp_path, parts)["formulas_set"])

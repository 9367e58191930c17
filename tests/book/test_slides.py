"""Slides: what a deck takes of a chapter, what it leaves out, and that a browser shows it offline."""

from pathlib import Path

import browser_checks
import light_pages
import pytest
import slides
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

FIGURE = '<figure class="companion-figure"><img alt="A curve" src="data:,"><figcaption>{}</figcaption></figure>'
TABLE = '<figure class="companion-table"><table><tr><td>One</td></tr></table></figure>'
OPENING = "# How far?\n\nIt is far. Why?\n\n```{admonition} Box\n**You will be able to**\n- measure,\n- add.\n```"
IDEA = (
    "## Two steps\n\nAs {numref}`fig-a` shows. **Errors add**, say {cite:t}`zhang2021`. They never fall below zero, "
    "whatever is done. A long tail follows.\n\n$$ a = b + c $$ (eq-sum)\n\n"
    "```{prf:theorem} Sums\n:label: thm-sums\n\nBy {eq}`eq-sum` $a > b$.\n```\n\n```{prf:proof}\nSecret.\n```"
)
SOLVED = "## Exercises\n\n```{solution-start} ex\n:class: dropdown\n```"


@pytest.fixture(scope="module")
def page() -> str:
    """The deck of a part with one small chapter."""
    shown = [new_output("display_data", {"text/html": FIGURE.format(words)}) for words in ("First", "Second")]
    shown.insert(1, new_output("display_data", {"text/html": TABLE}))  # beside figures it stays in the chapter
    solution = [new_output("display_data", {"text/html": FIGURE.format("Solved")})]
    cells = [
        new_markdown_cell(OPENING),
        new_markdown_cell(IDEA),
        new_code_cell("draw()", outputs=shown),
        new_markdown_cell("## Only words\n\nA sentence that shows nothing has no slide."),
        new_markdown_cell("## Numbers\n\nThese are few."),
        new_code_cell("table()", outputs=[new_output("display_data", {"text/html": TABLE})]),
        new_markdown_cell("## Pitfalls\n\n- **A sign.** Look twice. Then again.\n- No bold. Left out."),
        new_markdown_cell(
            "## What reproduced\n\n| Claim | Here |\n|---|---|\n| $\\|a\\| > 0$ | **Yes.** At length. Cut. |"
        ),
        new_markdown_cell(SOLVED),
        new_code_cell("solve()", outputs=solution),
        new_markdown_cell("```{solution-end}\n```\n\n## Take away\n\nAll of it. Both sentences."),
    ]
    return slides.deck("Part 1 <small>", [new_notebook(cells=cells)])


def test_a_slide_holds_what_its_section_says_in_short(page: str) -> None:
    found = [" ".join(one.get_text(" ").split()) for one in BeautifulSoup(page, "html.parser").find_all("section")]
    assert found == [
        "Part 1 <small> How far?",
        "How far? It is far. Why? measure, add.",
        "Two steps \\[a = b + c\\] Errors add , say Zhang et al. (2021). They never fall below zero, whatever is done. "
        "Sums By the formula above \\(a > b\\) . First",
        "Two steps Second",
        "Numbers These are few. One",
        "Pitfalls A sign. Look twice. No bold.",
        "What reproduced Claim Here \\(|a| > 0\\) Yes. At length.",
        "Take away All of it. Both sentences.",
    ]


def test_the_deck_names_no_other_host(page: str) -> None:
    assert "http" not in page and "//" not in page


@pytest.mark.browser
def test_a_browser_turns_the_slides_offline(page: str, tmp_path: Path) -> None:
    if browser_checks.executable() is None:
        pytest.skip("no Chromium was found")
    light_pages.copy_mathjax(tmp_path / "mathjax")
    (tmp_path / "deck.html").write_text(page, encoding="utf-8")
    with browser_checks.chromium() as browser:
        context = browser.new_context(viewport=browser_checks.DESK)
        context.set_default_timeout(browser_checks.PATIENCE)
        with browser_checks.visit(context, tmp_path / "deck.html") as seen:
            assert seen.failed == [] and seen.complaints == []
            titles = []
            for key in ("Home", "ArrowRight", "ArrowRight", "PageUp", "End"):
                seen.page.keyboard.press(key)
                seen.page.wait_for_timeout(100)
                titles.append(seen.page.inner_text("section.now h2"))
            assert titles == ["Part 1 <small>", "How far?", "Two steps", "How far?", "Take away"]
            assert seen.page.locator("section:nth-of-type(3) mjx-container").count() == 2


@pytest.mark.browser
def test_keys_scroll_a_tall_slide_before_they_turn_it(tmp_path: Path) -> None:
    if browser_checks.executable() is None:
        pytest.skip("no Chromium was found")
    light_pages.copy_mathjax(tmp_path / "mathjax")
    pitfalls = "## Pitfalls\n\n" + "\n".join(f"- **Number {n}.**" for n in range(60))
    cells = [new_markdown_cell(text) for text in ("# One\n\nIt opens.", pitfalls, "## Take away\n\nThe end.")]
    (tmp_path / "deck.html").write_text(slides.deck("Part", [new_notebook(cells=cells)]), encoding="utf-8")
    with browser_checks.chromium() as browser:
        context = browser.new_context(viewport=browser_checks.DESK)
        context.set_default_timeout(browser_checks.PATIENCE)
        with browser_checks.visit(context, tmp_path / "deck.html") as seen:
            for key in ("ArrowRight", "ArrowRight", "PageDown"):
                seen.page.keyboard.press(key)
                seen.page.wait_for_timeout(100)
            assert seen.page.inner_text("section.now h2") == "Pitfalls"
            assert seen.page.evaluate("scrollY") > 0
            assert seen.page.evaluate("getComputedStyle(document.querySelector('section.now')).fontSize") == "16px"
            for _ in range(9):
                seen.page.keyboard.press("ArrowDown")
                seen.page.wait_for_timeout(50)
            assert seen.page.inner_text("section.now h2") == "Take away"

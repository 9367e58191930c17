"""Pages and figures of solutions: what they show, when they are made again, and that a browser shows them offline."""

import base64
from pathlib import Path
from types import SimpleNamespace

import browser_checks
import light_pages
import nbformat
import pytest
import solutions
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PICTURES = [b"\x89PNG one", b"\x89PNG two", b"\x89PNG three"]


def executed() -> NotebookNode:
    """A solved notebook with a formula, text that looks like one, and three pictures of two questions."""
    shown = [new_output("display_data", {"image/png": base64.b64encode(p).decode()}) for p in PICTURES]
    price = new_output("stream", text="it costs $5 or $6 <b>")
    answer = {"companion": {"answer": "judge"}}
    cells = [
        new_markdown_cell("# One\n\nLet $a < b$ and\n\n$$ a_1 = b_2. $$"),
        new_code_cell("draw()  # <i>", outputs=[shown[0]]),
        new_code_cell("judge()", outputs=[price, *shown[1:]], metadata=answer),
    ]
    return new_notebook(cells=cells)


def test_figures_are_named_after_their_question() -> None:
    wanted = dict(zip(("given-1.png", "judge-1.png", "judge-2.png"), PICTURES, strict=True))
    assert solutions.figures(executed()) == wanted


def test_page_shows_text_code_outputs_and_pictures_and_names_no_other_host() -> None:
    page = solutions.page(executed(), "Solution of one", "abc")
    soup = BeautifulSoup(page, "html.parser")
    assert "http" not in page
    text = soup.main.get_text(" ")
    for part in ("One", "draw", "# <i>", "it costs $5 or $6 <b>", "$$ a_1 = b_2. $$"):
        assert part in text
    sources = [image["src"] for image in soup.find_all("img")]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == PICTURES
    assert [script.get("src") for script in soup.find_all("script") if script.get("src")] == ["mathjax/startup.js"]


@pytest.mark.slow
def test_a_page_is_made_again_when_its_solution_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    task = SimpleNamespace(solution=nbformat.v4.new_notebook(cells=[new_code_cell("a = 1")]))
    monkeypatch.setattr(solutions.grading, "load", lambda name: task)

    def execute(notebook: NotebookNode, folder: Path, profile: str) -> NotebookNode:
        ran.append(notebook.cells[0].source)
        return executed()

    monkeypatch.setattr(solutions, "execute", execute)
    stale = tmp_path / "one-figures" / "gone-1.png"
    stale.parent.mkdir()
    stale.touch()
    for force in (False, False, True):
        solutions.make("one", tmp_path, force)
    task.solution.cells[0].source = "a = 2"
    solutions.make("one", tmp_path, False)
    assert ran == ["a = 1", "a = 1", "a = 2"]
    assert {path.name for path in stale.parent.iterdir()} == {"given-1.png", "judge-1.png", "judge-2.png"}


@pytest.mark.browser
def test_a_browser_sets_the_formulas_offline(tmp_path: Path) -> None:
    if browser_checks.executable() is None:
        pytest.skip("no Chromium was found")
    light_pages.copy_mathjax(tmp_path / "mathjax")
    (tmp_path / "one.html").write_text(solutions.page(executed(), "Solution of one", "abc"), encoding="utf-8")
    with browser_checks.chromium() as browser:
        context = browser.new_context(viewport=browser_checks.DESK)
        context.set_default_timeout(browser_checks.PATIENCE)
        with browser_checks.visit(context, tmp_path / "one.html") as seen:
            assert seen.failed == []
            assert seen.page.locator("mjx-container").count() == 2  # and none in what the code printed

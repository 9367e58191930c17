"""The book's own Sphinx extensions, on a page made for the purpose."""

import subprocess
import sys
from pathlib import Path

import nbformat
import numbered_figures
import pytest
import readable_downloads
from bs4 import BeautifulSoup, Tag
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pybtex.database import parse_string

EXTENSIONS = Path(__file__).resolve().parents[2] / "book" / "_ext"
FIGURE = '<figure class="companion-{}"{}><img alt="A curve" src="a.png">{}</figure>'
CAPTION = "<figcaption style='color:inherit'>Less &lt; more</figcaption>"
TEXT = "# One\n{numref}`fig-named`, {numref}`fig-page-2`, {numref}`tab-named`, {ref}`here <fig-named>`"
OUTPUTS = [
    FIGURE.format("figure", ' id="fig-named" style="margin:0"', CAPTION),
    FIGURE.format("explore", "", CAPTION) + "<script>start()</script>",
    FIGURE.format("table", ' id="tab-named"', CAPTION),
    FIGURE.format("figure", "", ""),
    "<b>no figure</b>",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Tag:
    """The article of a notebook with figures and references to them, as Sphinx builds it without a warning."""
    folder = tmp_path_factory.mktemp("small")
    shown = [new_output("display_data", {"text/html": html, "text/plain": "Figure"}) for html in OUTPUTS]
    cells = [new_markdown_cell(TEXT), new_code_cell("draw()", outputs=shown, execution_count=1)]
    nbformat.write(new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), folder / "page.ipynb")
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\nextensions = ['myst_nb', 'numbered_figures']\n"
        "root_doc = 'page'\nnumfig = True\nnb_execution_mode = 'off'\nhtml_theme = 'basic'\n"
        "nb_mime_priority_overrides = [['html', 'text/html', 5]]\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", str(folder), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return BeautifulSoup((folder / "html" / "page.html").read_text(), "html.parser")


@pytest.mark.slow
def test_figures_and_tables_have_numbers_of_their_own(page: Tag) -> None:
    numbers = [span.get_text(strip=True) for span in page.select("figure .caption-number")]
    assert numbers == ["Fig. 1", "Fig. 2", "Table 1"]
    assert [figure.get("id") for figure in page.find_all("figure")] == ["fig-named", "fig-page-2", "tab-named", None]
    assert page.find_all("figure")[1].script.get_text() == "start()"
    assert {span.get_text() for span in page.select("figure .caption-text")} == {"Less < more"}


@pytest.mark.slow
def test_text_refers_to_figures_by_name_and_number(page: Tag) -> None:
    links = {link.get_text(): link["href"] for link in page.select("a.reference.internal[href^='#']")}
    expected = {"Fig. 1": "#fig-named", "Fig. 2": "#fig-page-2", "Table 1": "#tab-named", "here": "#fig-named"}
    assert expected.items() <= links.items()


@pytest.mark.slow
def test_an_output_without_a_caption_stays_as_it_was(page: Tag) -> None:
    assert page.find("b", string="no figure")
    assert numbered_figures.numbered(OUTPUTS[3], "fig-x") is None
    assert "caption-number" not in str(page.find_all("figure")[3])


SOURCES = parse_string(
    "@article{one, author={Ann Lee and Bo Ek}, year={2020}}"
    "@article{many, author={Cy Oh and Di Po and Ed Qu}, year={2021}}"
    "@misc{nobody, title={A lecture}}",
    "bibtex",
).entries
MYST = [
    ("As {cite:t}`many` and {cite:p}`one,many`", "As Oh et al. (2021) and (Lee and Ek, 2020; Oh et al., 2021)"),
    ("By {cite:t}`nobody`.", "By A lecture (n. d.)."),
    ("in {numref}`fig-a` and {eq}`eq-b`", "in Figure 3.1 and (3.2)"),
    ("see {ref}`this figure <fig-a>`", "see this figure"),
    ("$$ a = b $$ (eq-b)", "$$ a = b \\tag{3.2}$$"),
    ("[next](next.ipynb#top), [web](https://w.invalid), [up](#a)", "next, [web](https://w.invalid), [up](#a)"),
    ("![A face](face.png)", "![A face](face.png)"),
    ("```{admonition} Box\n:class: tip\n\nOne\nTwo\n```", "> **Box**\n>\n> One\n> Two"),
    ("```{prf:theorem} Bound\n:label: t\nAll\n```", "> **Theorem (Bound)**\n>\n> All"),
    (":::{note}\nAll\n:::", "> **Note**\n>\n> All"),
    (":::{dropdown} Why?\nSo.\n:::", "<details><summary>Why?</summary>\n\nSo.\n\n</details>"),
    ("```{exercise-start} Guess\n:label: e\n```\nDo.\n```{exercise-end}\n```", "**Exercise. Guess**\n\nDo.\n"),
    ("```{solution-start} e\n:class: dropdown\n```\nDone.\n```{solution-end}\n```", "**Solution**\n\nDone.\n"),
    ("```python\nx = {cite}\n```", "```python\nx = {cite}\n```"),
]


@pytest.mark.parametrize(("myst", "markdown"), MYST, ids=[myst[:20] for myst, _ in MYST])
def test_downloads_are_plain_markdown(myst: str, markdown: str) -> None:
    numbers = {"fig-a": "Figure 3.1", "eq-b": "3.2"}
    made = readable_downloads.plain(
        myst,
        lambda role, keys: readable_downloads.citation(role, keys, SOURCES),
        numbers.__getitem__,
        lambda address: "",
    )
    assert made == markdown


def test_links_of_a_download_lead_to_the_site_when_it_has_an_address() -> None:
    made = readable_downloads.plain(
        "[next](next.ipynb)", lambda *_: "", str, lambda address: f"https://b.invalid/{address}"
    )
    assert made == "[next](https://b.invalid/next.ipynb)"


def test_downloaded_chapters_of_the_site_read_well(site: Path) -> None:
    paths = sorted((site / "_sources").rglob("*.ipynb"))
    assert paths
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert "flow-priors" in notebook.cells[0].source
        assert "{cite" not in text and "{numref" not in text and "```{" not in text and ":::{" not in text, path.name
        assert ".ipynb)" not in text and ".md)" not in text, path.name

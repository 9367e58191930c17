"""What every chapter must keep. Each check takes one chapter and returns its faults as readable lines.

CONTRIBUTING.md says how to write a chapter that passes.
"""

import ast
import base64
import binascii
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from PIL import Image, UnidentifiedImageError
from reading_time import FOLDED, code_lines, minutes, stated, visible
from run_chapters import RECORD, code_cells, code_hash, stored_hashes

LARGEST = 2_000_000  # bytes
COLUMNS, PRINTED = 88, 80  # of code, of printed text: what a window of 1,280 pixels shows without scrolling
LINES_A_CELL, LINES_A_CHAPTER = 12, 130  # of visible code

SECTIONS = {
    "goals ('you will be able to')": r"able to",
    "prerequisites ('you need')": r"you need",
    "reading time": r"reading time|to read",
    "running time": r"running time|to run",
    "what the stored results were run on": r"stored results",
    "heading '... reproduced ...'": r"^## .*reproduc",
    "heading 'Pitfalls'": r"^## Pitfalls",
    "heading 'Exercises'": r"^## Exercises",
    "heading 'Take away'": r"^## Take away",
    "heading 'Further reading'": r"^## Further reading",
}

LOCAL_PATH = re.compile(
    r"(?<![\w.~/])/(?:home|root|Users|tmp|work|mnt|private|var/folders)/\w[^\s\"')]*|\b[A-Z]:\\Users\b|file:///"
)
DATA_URI = re.compile(r"data:image/(?:png|jpeg|webp);base64,([A-Za-z0-9+/=\s]+)")
DIRECTIVE = re.compile(r"^ *(:{3,}|`{3,})\{(\w[\w-]*)\}[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
FENCED_CODE = re.compile(r"^(`{3,})(?!\{)[^\n]*\n.*?^\1 *$", re.MULTILINE | re.DOTALL)


@dataclass
class Chapter:
    """A notebook with its place and its size in bytes."""

    path: Path
    notebook: NotebookNode
    size: int

    @classmethod
    def read(cls, path: Path) -> "Chapter":
        """Read a notebook file."""
        return cls(path, nbformat.read(path, as_version=4), path.stat().st_size)

    @property
    def text(self) -> str:
        """All Markdown of the chapter."""
        return "\n\n".join(cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")


def outputs(chapter: Chapter) -> Iterator[tuple[int, NotebookNode, NotebookNode]]:
    """Number of the code cell (from 1), the cell, and each of its outputs."""
    for number, cell in enumerate(code_cells(chapter.notebook), 1):
        for output in cell.outputs:
            yield number, cell, output


def run_in_order(chapter: Chapter) -> list[str]:
    """Execution counts are 1..n, no cell is empty."""
    cells = code_cells(chapter.notebook)
    faults = [f"code cell {i}: empty" for i, cell in enumerate(cells, 1) if not cell.source.strip()]
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)) or not cells:
        faults.append(f"execution counts {counts}, not 1..{len(cells)}; run `make chapters`")
    return faults


def no_errors_or_warnings(chapter: Chapter) -> list[str]:
    """No stored exception; on stderr nothing but what is no warning in a cell tagged nbval-ignore-output."""
    faults = []
    for number, cell, output in outputs(chapter):
        if output.output_type == "error":
            faults.append(f"code cell {number}: stored error {output.ename}")
        if output.get("name") == "stderr":
            ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
            if not ignored or re.search(r"warning|error|traceback", output.text, re.IGNORECASE):
                faults.append(f"code cell {number}: stored on stderr: {output.text.strip().splitlines()[0][:80]}")
    return faults


def up_to_date(chapter: Chapter) -> list[str]:
    """The recorded hashes of code and stored results are those of now."""
    record = chapter.notebook.metadata.get(RECORD, {})
    faults = []
    if record.get("code") != code_hash(chapter.notebook):
        faults.append("the code is not the code that made the outputs; run `make chapters`")
    if record.get("stored") != stored_hashes(chapter.notebook):
        faults.append("a stored result changed since the run; run `make chapters`")
    faults += [
        f"the run's {field} is not recorded" for field in ("profile", "device", "versions") if not record.get(field)
    ]
    return faults


def clean_metadata(chapter: Chapter) -> list[str]:
    """Kernel python3, no widget state, no timing, under 2 MB."""
    metadata = chapter.notebook.metadata
    faults = []
    if metadata.get("kernelspec", {}).get("name") != "python3":
        faults.append(f"kernel {metadata.get('kernelspec', {}).get('name')!r}, not 'python3'")
    if "widgets" in metadata:
        faults.append("widget state is stored")
    if any("execution" in cell.metadata for cell in chapter.notebook.cells):
        faults.append("times of execution are stored")
    if chapter.size >= LARGEST:
        faults.append(f"{chapter.size / 1e6:.1f} MB, not under 2 MB")
    return faults


def no_local_paths(chapter: Chapter) -> list[str]:
    """No path of the machine that ran it, in text, code or outputs."""
    texts = [cell.source for cell in chapter.notebook.cells]
    for _, _, output in outputs(chapter):
        texts.append(output.get("text", ""))
        texts += output.get("traceback", [])
        texts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return [f"local path {match[0]}" for text in texts for match in LOCAL_PATH.finditer(DATA_URI.sub("", text))]


def picture_fault(encoded: str) -> str:
    """What is wrong with a base64 picture; empty when it decodes and shows something."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=False))) as picture:
            extrema = picture.convert("RGB").getextrema()
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError) as error:
        return f"does not decode ({type(error).__name__})"
    return "is blank" if all(low == high for low, high in extrema) else ""


def pictures_show_something(chapter: Chapter) -> list[str]:
    """Every stored picture decodes and has more than one colour: outputs, frames in HTML, attachments."""
    found: list[tuple[str, str]] = []
    for number, _, output in outputs(chapter):
        data = output.get("data", {})
        found += [(f"code cell {number}", data[kind]) for kind in ("image/png", "image/jpeg") if kind in data]
        found += [(f"code cell {number}, frame", match[1]) for match in DATA_URI.finditer(data.get("text/html", ""))]
    for cell in chapter.notebook.cells:
        bundles = cell.get("attachments", {}).values()
        found += [("attachment", value) for bundle in bundles for value in bundle.values()]
    return [f"{where}: a picture {fault}" for where, encoded in found if (fault := picture_fault(encoded))]


def missing_alt_in_markdown(text: str) -> list[str]:
    """Pictures of a Markdown text that have no alternative text: ![](...), <img>, figure and image directives."""
    prose = FENCED_CODE.sub("", text)
    faults = [f"![]({target}) has no alt text" for target in re.findall(r"!\[\s*\]\(([^)]*)\)", prose)]
    faults += missing_alt_in_html(prose)
    for _, name, body in DIRECTIVE.findall(prose):
        if name in {"figure", "image"} and not re.search(r"^ *:alt: *\S", body, re.MULTILINE):
            faults.append(f"a {name} directive has no :alt:")
    return faults


def missing_alt_in_html(html: str) -> list[str]:
    """Pictures of an HTML text without alternative text: <img> without alt, <svg role=img> without a label."""
    soup = BeautifulSoup(html, "html.parser")
    faults = ["an <img> has no alt text" for image in soup.find_all("img") if not (image.get("alt") or "").strip()]
    drawings = soup.find_all("svg", attrs={"role": "img"})
    return faults + ["an <svg> has no label" for s in drawings if not (s.get("aria-label") or s.find("title"))]


def alt_texts(chapter: Chapter) -> list[str]:
    """Every figure and frame has an alternative text; a PNG output has it in the cell's metadata, mystnb.image.alt."""
    faults = missing_alt_in_markdown(chapter.text)
    for number, cell, output in outputs(chapter):
        data = output.get("data", {})
        if "text/html" in data:
            faults += [f"code cell {number}: {fault}" for fault in missing_alt_in_html(data["text/html"])]
        elif {"image/png", "image/jpeg", "image/svg+xml"} & set(data):
            image = cell.metadata.get("mystnb", {}).get("image", {})
            if not str(image.get("alt", "")).strip():
                faults.append(f"code cell {number}: its figure has no alt text")
    return faults


def has_sections(chapter: Chapter) -> list[str]:
    """One title, and the parts that every chapter has."""
    titles = re.findall(r"^# .+", FENCED_CODE.sub("", chapter.text), re.MULTILINE)
    faults = [] if len(titles) == 1 else [f"{len(titles)} titles, not one"]
    flags = re.IGNORECASE | re.MULTILINE
    return faults + [
        f"missing: {name}" for name, pattern in SECTIONS.items() if not re.search(pattern, chapter.text, flags)
    ]


def exercises_have_solutions(chapter: Chapter) -> list[str]:
    """At least one exercise; each is labelled and has one solution, folded by `:class: dropdown`."""
    blocks = re.findall(
        r"^ *[:`]{3,}\{(exercise|solution)(?:-start)?\} *(\S*)[^\n]*\n((?: *:[\w-]+:[^\n]*\n)*)", chapter.text, re.M
    )
    labels = [
        m[1] if (m := re.search(r":label: *(\S+)", options)) else ""
        for kind, _, options in blocks
        if kind == "exercise"
    ]
    solved = [target for kind, target, _ in blocks if kind == "solution"]
    faults = [] if labels else ["no exercise"]
    faults += ["an exercise has no :label:" for label in labels if not label]
    faults += [
        f"exercise {label} has {solved.count(label)} solutions"
        for label in labels
        if label and solved.count(label) != 1
    ]
    faults += [f"the solution of {target!r} has no exercise" for target in solved if target not in labels]
    open_ones = [target for kind, target, options in blocks if kind == "solution" and "dropdown" not in options]
    return faults + [f"the solution of {target} is not folded (:class: dropdown)" for target in open_ones]


def numbered_cells(chapter: Chapter) -> Iterator[tuple[int, NotebookNode, bool]]:
    """Number of each code cell (from 1), the cell, and whether the page folds its code."""
    for number, cell in enumerate(code_cells(chapter.notebook), 1):
        yield number, cell, FOLDED in cell.metadata.get("tags", [])


def narrow(chapter: Chapter) -> list[str]:
    """Code of at most 88 columns, printed lines of at most 80."""
    faults = []
    for number, cell, _ in numbered_cells(chapter):
        lines = [("code", COLUMNS, line) for line in cell.source.splitlines()]
        for output in cell.outputs:
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            drawn = "text/html" in output.get("data", {})
            lines += [("printed", PRINTED, line) for line in text.splitlines() if not drawn]
        faults += [
            f"code cell {number}: {len(line)} columns {kind}, not {most}: {line.strip()[:40]}"
            for kind, most, line in lines
            if len(line) > most
        ]
    return faults


def little_code(chapter: Chapter) -> list[str]:
    """At most 12 lines of visible code a cell, at most 130 a chapter; solutions and folded cells do not count."""
    shown = [cell for cell in visible(chapter.notebook) if cell.cell_type == "code"]
    faults = [
        f"{code_lines(cell)} lines of visible code, not {LINES_A_CELL}: {cell.source.splitlines()[0][:60]}"
        for cell in shown
        if code_lines(cell) > LINES_A_CELL
    ]
    total = sum(map(code_lines, shown))
    if total > LINES_A_CHAPTER:
        faults.append(f"{total} lines of visible code in all, not {LINES_A_CHAPTER}")
    return faults


def figures_are_folded(chapter: Chapter) -> list[str]:
    """A cell with an alt text or a caption is folded, so that nothing above the picture gives it away."""
    faults = []
    for number, cell, folded in numbered_cells(chapter):
        calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
        if not folded and any(k.arg in ("alt", "alts", "caption") for call in calls for k in call.keywords):
            faults.append(f"code cell {number}: shows an alt text or caption; tag it {FOLDED}, it may only draw")
    return faults


def folded_cells_only_draw(chapter: Chapter) -> list[str]:
    """What visible code uses is made by visible code; a folded cell prints nothing."""
    faults, folded_names = [], dict[str, int]()
    for number, cell, folded in numbered_cells(chapter):
        tree = ast.parse(cell.source)
        if folded:
            if any(output.output_type == "stream" for output in cell.outputs):
                faults.append(f"code cell {number}: folded, but prints; print in a cell of its own")
            folded_names.update(dict.fromkeys(assigned(tree), number))
            continue
        read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        own = assigned(tree)
        faults += [
            f"code cell {number}: uses {name}, which the folded cell {folded_names[name]} makes"
            for name in sorted(read & set(folded_names) - own)
        ]
        for name in own:
            folded_names.pop(name, None)
    return faults


def assigned(tree: ast.Module) -> set[str]:
    """Names that a cell gives a value at any depth, functions and classes included."""
    made = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    return made | {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def figures_are_named(chapter: Chapter) -> list[str]:
    """Every figure has a caption, and so a number; a name that text refers to belongs to one figure."""
    faults, seen = [], set[str]()
    for number, _, output in outputs(chapter):
        html = output.get("data", {}).get("text/html", "")
        figure = re.match(r'\s*<figure class="companion-[^>]*>', html)
        if figure and "<figcaption" not in html:
            faults.append(f"code cell {number}: its figure has no caption")
        for name in re.findall(r'\bid="([^"]+)"', figure[0] if figure else ""):
            if name in seen:
                faults.append(f"code cell {number}: a second figure named {name}")
            seen.add(name)
    return faults


def reading_time_is_measured(chapter: Chapter) -> list[str]:
    """The box names the minutes that book/_tools/reading_time.py measures."""
    said, measured = stated(chapter.notebook), minutes(chapter.notebook)
    return [] if said == measured else [f"reading time {said}, not {measured}; run book/_tools/reading_time.py"]


CHECKS: list[Callable[[Chapter], list[str]]] = [
    run_in_order,
    no_errors_or_warnings,
    up_to_date,
    clean_metadata,
    no_local_paths,
    pictures_show_something,
    alt_texts,
    has_sections,
    exercises_have_solutions,
    narrow,
    little_code,
    figures_are_folded,
    folded_cells_only_draw,
    figures_are_named,
    reading_time_is_measured,
]

"""The grader: marks of right, wrong, empty and hostile submissions, and a grading that goes on where it stopped."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from companion import grading
from companion.cli import main
from companion.grading import master
from companion.grading.master import source
from companion.grading.sandbox import isolation
from companion.grading.submissions import code_cells

Cells = list[dict[str, Any]]

SOLVED = {
    "square": "def square(x):\n    return x * x  # SOLUTION\n",
    "log_det": "import math\n\ndef log_det(s):\n    # BEGIN SOLUTION\n"
    "    return math.log(s * s) / 2\n    # END SOLUTION\n",
}
TESTS = {
    "square": [
        "assert square(2) == 4, 'the square of 2 is 4'",
        "# HIDDEN\nimport math\nassert math.isclose(square(-1.5), 2.25), 'squares are positive'",
    ],
    "log_det": [
        "import math\nassert math.isclose(log_det(2.0), math.log(2)), 'log of the scale'",
        "# HIDDEN\nassert abs(log_det(-0.5) - -0.6931471805599453) < 1e-12, 'of its absolute value'",
    ],
}


def raw(text: str) -> dict[str, Any]:
    return {"cell_type": "raw", "metadata": {}, "source": text}


def code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": text, "outputs": [], "execution_count": None}


def notebook(cells: Cells) -> dict[str, Any]:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assignment of two questions of 2 points, and one that a person marks."""
    cells = [raw("# ASSIGNMENT CONFIG\nseconds: 2\nmemory_mb: 400")]
    for name, solution in SOLVED.items():
        cells += [raw(f"# BEGIN QUESTION\nname: {name}\npoints: 2"), raw("# BEGIN SOLUTION"), code(solution)]
        cells += [raw("# END SOLUTION"), raw("# BEGIN TESTS"), *map(code, TESTS[name]), raw("# END TESTS")]
        cells += [raw("# END QUESTION")]
    cells += [raw("# BEGIN QUESTION\nname: why\npoints: 3\nmanual: true"), raw("# BEGIN SOLUTION")]
    cells += [{"cell_type": "markdown", "metadata": {}, "source": "Because of the secret."}]
    cells += [raw("# END SOLUTION"), raw("# END QUESTION")]
    made = tmp_path_factory.mktemp("assignment")
    (made / "master.ipynb").write_text(json.dumps(notebook(cells)))
    return made


@pytest.fixture
def marks(folder: Path, tmp_path: Path) -> Any:
    """Grade one submission: its marks of the automatic questions, and its remarks as one text."""

    def of(content: bytes | dict[str, Any] | Cells) -> tuple[list[float], str]:
        if isinstance(content, list):
            content = notebook(content)
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "one.ipynb").write_bytes(text)
        record = grading.grade([tmp_path / "one.ipynb"], folder, tmp_path / "marks.csv")[0]
        assert record["marks"]["why"] is None
        return [record["marks"][name] for name in SOLVED], "; ".join(record["remarks"])

    return of


def solved(*extra: str) -> Cells:
    """The solution, with more cells between its first answer and its second."""
    return [code(SOLVED["square"]), *map(code, extra), code(SOLVED["log_det"])]


def test_solution_and_untouched_file(folder: Path, marks: Any) -> None:
    task = grading.load(folder)
    assert marks(task.solution) == ([2, 2], "")
    given, remarks = marks(task.student)
    assert given == [0, 0]
    assert "square: " in remarks and "log_det: " in remarks


def test_student_file_holds_no_solution_and_no_hidden_test(folder: Path) -> None:
    text = json.dumps(grading.load(folder).student)
    for secret in ("x * x", "s * s", "secret", "HIDDEN", "2.25", "SOLUTION", "BEGIN", "6931"):
        assert secret not in text
    assert "the square of 2 is 4" in text


def first_code(task: grading.Assignment) -> str:
    return next(source(cell) for cell in task.student["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize("there", [True, False])
def test_first_cell_installs_the_package_where_it_is_missing(
    folder: Path, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_config.yml").write_text('repository:\n  url: "https://b.invalid/flows"\n')
    monkeypatch.setattr(master, "_BOOK", tmp_path / "_config.yml")
    if not there:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran: list[tuple[str, str]] = []
    shell = SimpleNamespace(run_line_magic=lambda *magic: ran.append(magic))
    exec(TransformerManager().transform_cell(first_code(grading.load(folder))), {"get_ipython": lambda: shell})
    assert ran == ([] if there else [("pip", "install --quiet git+https://b.invalid/flows")])


def test_first_cell_says_what_to_do_where_no_address_is_known(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master, "_BOOK", tmp_path / "_config.yml")
    exec(first_code(grading.load(folder)), {})  # the package is there
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install flow_priors-.*\.whl, .* pip install \."):
        exec(first_code(grading.load(folder)), {})


def test_address_is_that_of_the_book(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (
        (Path(__file__).resolve().parents[1] / "_config.yml").read_text().replace('url: ""', 'url: "https://b.invalid"')
    )
    (tmp_path / "_config.yml").write_text(text)
    monkeypatch.setattr(master, "_BOOK", tmp_path / "_config.yml")
    assert master.repository() == yaml.safe_load(text)["repository"]["url"] != ""


@pytest.mark.parametrize(
    ("wrong", "left"),
    [
        ([code("square = lambda x: x * abs(x)"), code(SOLVED["log_det"])], [0, 2]),
        ([code(SOLVED["square"]), code("import math\nlog_det = lambda s: -math.log(abs(s))")], [2, 0]),
        ([code(SOLVED["square"]), code("import math\nlog_det = math.log")], [2, 0]),
    ],
)
def test_wrong_answer_loses_its_question(marks: Any, wrong: Cells, left: list[float]) -> None:
    assert marks(wrong)[0] == left


HOSTILE = {
    "loop": ("while True: pass", "code cell 2 ran past the limit of 2 s; it was left out"),
    "memory": ("x = bytearray(2**30)", "code cell 2: MemoryError"),
    "exit": ("import os; os._exit(0)", "code cell 2 ended its process (exit code 0); it was left out"),
    "crash": ("import ctypes; ctypes.string_at(0)", "code cell 2 ended its process"),
    "leave": ("raise SystemExit", "code cell 2: SystemExit"),
    "syntax": ("def f(:", "code cell 2: SyntaxError"),
    "output": ("import os\nfor _ in range(2000): os.write(1, b'x' * 10000)", "output cut after 20 kB"),
    "file": ("open('big', 'wb').write(bytes(2**27))", "code cell 2: OSError"),
    "close": ("import os; os.closerange(3, 100)", "code cell 2 "),
    "message": (
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'{\"token\": 1}\\n[]\\n\\xff\\n')\n"
        "    except OSError: pass",
        "",
    ),
    "magic": ("%matplotlib inline\n!echo hello", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_cell_costs_no_marks(marks: Any, kind: str) -> None:
    cell, remark = HOSTILE[kind]
    given, remarks = marks(solved(cell))
    assert given == [2, 2], remarks
    assert remark in remarks and bool(remark) == bool(remarks)


CHEATS = [
    "import math; math.isclose = lambda *a, **k: True",
    "import sys\nsys.modules['math'] = type(sys)('math'); sys.modules['math'].isclose = lambda *a: True",
    "abs = lambda x: 0.0",
    "import json; json.dumps = lambda *a: '{}'",
    "import builtins\nclass E(Exception): pass\nbuiltins.AssertionError = E",
    "import builtins; builtins.abs = lambda x: 0.0\nbuiltins.isinstance = builtins.vars = lambda *a: False",
    "import sys, os; sys.exit = os._exit; sys.stdout = None",
    "import sys; sys.settrace(lambda *a: None)",
]


def test_patched_checks_earn_nothing(marks: Any) -> None:
    wrong = ["def square(x):\n    return 7.0", "def log_det(s):\n    return 7.0"]
    given, remarks = marks([code(text) for text in (*wrong, *CHEATS)])
    assert given == [0, 0] and "code cell" not in remarks
    assert marks([code(text) for text in (*SOLVED.values(), *CHEATS)])[0] == [2, 2]


def test_a_submission_finds_no_masters(marks: Any, tmp_path: Path) -> None:
    look = "from importlib.util import find_spec\nfrom pathlib import Path\nimport os\n"
    look += "place = Path(find_spec('companion').origin).parents[1]\n"
    look += "assert os.listdir(place) == ['companion'] and os.listdir() == [], place"
    given, remarks = marks(solved(look, "import importlib; # companion.grading"))
    assert given == [2, 2]
    assert remarks == "code cell 3 names the grader or a master: read it"
    (tmp_path / "companion").symlink_to(Path(grading.__file__).parents[1])  # as a submission finds it
    spec = spec_from_file_location("linked", tmp_path / "companion" / "grading" / "master.py")
    linked = module_from_spec(spec)
    sys.modules["linked"] = linked  # dataclasses look there
    try:
        spec.loader.exec_module(linked)
    finally:
        del sys.modules["linked"]
    assert linked.names() == [] != grading.names()


SWITCHES = [
    "import warnings; warnings.simplefilter('error')",
    "import numpy; numpy.seterr(all='raise')",
    "import sys, threading; threading.settrace(sys.exit)",
]
TORCH_SWITCHES = [
    "import torch; torch.set_grad_enabled(False)",
    "mode = torch.inference_mode(); mode.__enter__()",
    "torch.set_default_dtype(torch.float64); torch.set_default_device('meta')",
    "class M(torch.overrides.TorchFunctionMode):\n"
    "    def __torch_function__(self, func, types, args=(), kwargs=None): return True\nm = M(); m.__enter__()",
]


def test_what_a_cell_leaves_switched_on_does_not_reach_the_tests(marks: Any) -> None:
    noisy = "import numpy, warnings\ndef square(x):\n    warnings.warn('old')\n    numpy.float64(1e200) ** 2\n"
    answers = [noisy + "    return x * x", SOLVED["log_det"]]
    assert marks([code(text) for text in (*answers, *SWITCHES)])[0] == [2, 2]


@pytest.mark.slow
def test_what_a_cell_leaves_switched_on_in_torch_does_not_reach_the_tests(tmp_path: Path) -> None:
    check = "import torch\nx = torch.ones(2, requires_grad=True)\nx.square().sum().backward()\n"
    check += "assert x.dtype == torch.float32 and x.grad.tolist() == [2, 2] and bool(square(3) == 9)"
    parts = [raw("# ASSIGNMENT CONFIG\nseconds: 60\nmemory_mb: 8192"), raw("# BEGIN QUESTION\nname: square\npoints: 1")]
    parts += [raw("# BEGIN SOLUTION"), code(SOLVED["square"]), raw("# END SOLUTION")]
    parts += [raw("# BEGIN TESTS"), code(check), raw("# END TESTS"), raw("# END QUESTION")]
    (tmp_path / "master.ipynb").write_text(json.dumps(notebook(parts)))
    for name, answer, points in (("right", SOLVED["square"], 1), ("wrong", "def square(x):\n    return 7", 0)):
        path = tmp_path / f"{name}.ipynb"
        path.write_text(json.dumps(notebook([code(text) for text in (answer, *TORCH_SWITCHES)])))
        record = grading.grade([path], tmp_path, tmp_path / f"{name}.csv")[0]
        assert record["marks"] == {"square": points}, record["remarks"]


def test_edited_and_deleted_tests_change_nothing(folder: Path, marks: Any) -> None:
    cells = grading.load(folder).student["cells"]
    edited = [{**cell, "source": "import os; os._exit(1)"} if cell["metadata"] else cell for cell in cells]
    assert marks(edited)[0] == [0, 0]
    assert marks([code(text) for text in SOLVED.values()]) == ([2, 2], "")


def test_an_answer_in_a_test_cell_counts(folder: Path, marks: Any) -> None:
    cells = [{**cell, "source": source(cell)} for cell in grading.load(folder).student["cells"]]
    place = next(cell for cell in cells if cell["metadata"])
    place["source"] = SOLVED["square"] + "\n" + place["source"]
    given, remarks = marks(cells)
    assert given == [2, 0]
    assert "code cell 3 is none of the tests, though marked as one: it was run as an answer" in remarks
    assert remarks.count("it was run as an answer") == 1
    failing = code("assert False")
    assert marks([{**failing, "metadata": {"companion": {"test": "square"}}}])[1].count("code cell 1") == 2


SHELL = [
    "def square(x):\n    return x * x\n\nsquare?",
    "display(1, clear=True)\nx = 1",
    "%%time\ny = x + 1",
    "%time z = y + 1",
    "u = %timeit -o -n1 -r1 1\nfiles = !ls\ncd = !echo {z}",
    "import asyncio\nv = await asyncio.sleep(0, z)",
    "text = ('%d'\n     % v)\n%matplotlib inline\nassert text == '3'",
    "    import math",
    "if x:\n    %precision 3\n    def log_det(s):\n        return math.log(abs(s))",
]


def test_what_only_ipython_reads_costs_no_marks(marks: Any) -> None:
    assert marks([code(text) for text in SHELL]) == ([2, 2], "")


def test_answer_that_ends_the_process_loses_its_question(marks: Any) -> None:
    given, remarks = marks([code("import os\ndef square(x):\n    os._exit(0)"), code(SOLVED["log_det"])])
    assert given == [0, 2]
    assert "square: ended its process (exit code 0)" in remarks


def test_missing_cell(marks: Any) -> None:
    assert marks([code(SOLVED["log_det"])]) == ([0, 2], "square: NameError: name 'square' is not defined")


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        (b"\x89PNG\xff", "the submission is not a Jupyter notebook"),
        (b"[" * 100_000, "the submission is not a Jupyter notebook"),
        (b'{"cells": [1]}', "the submission is not a Jupyter notebook"),
        (
            {"cells": [], "metadata": {"kernelspec": {"language": "R"}}},
            "the submission is for a kernel of R, not of Python",
        ),
    ],
)
def test_file_that_cannot_be_graded(marks: Any, content: Any, remark: str) -> None:
    assert marks(content) == ([0, 0], remark)


def test_no_network(marks: Any) -> None:
    if not isolation():
        assert "network open" in marks(solved())[1]
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = server.getsockname()
        given, remarks = marks(solved(f"import socket; socket.create_connection({address!r}, 1)"))
        with pytest.raises(TimeoutError):
            server.accept()
    assert given == [2, 2]
    assert "code cell 2: OSError" in remarks


@pytest.mark.slow
def test_what_a_student_starts_is_killed(marks: Any, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    left = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).write_text(str(time.time())); time.sleep(0.05)"
    )
    start = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {left!r}])\nimport time; time.sleep(0.5)"
    assert marks(solved(start))[0] == [2, 2]
    seen = alive.read_text()
    time.sleep(0.3)
    assert alive.read_text() == seen


@pytest.mark.slow
def test_table_is_the_same_again_and_stopped_grading_goes_on(folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "in"
    given.mkdir()
    log = tmp_path / "log"
    trace = f"with open({str(log)!r}, 'a') as f: f.write('x')"
    for name, cells in {"a": solved(trace), "b": solved("import time; time.sleep(1)"), "c": solved()}.items():
        (given / f"{name}.ipynb").write_text(json.dumps(notebook(cells)))
    (given / "d.ipynb").write_text("no notebook")
    out = tmp_path / "marks.csv"
    command = [
        sys.executable,
        "-m",
        "companion.cli",
        "grade",
        str(given),
        "--assignment",
        str(folder),
        "--out",
        str(out),
    ]
    stopped = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    over = time.monotonic() + 60
    while not (tmp_path / "marks" / "a.json").exists() and time.monotonic() < over:
        time.sleep(0.02)
    os.killpg(stopped.pid, signal.SIGKILL)
    stopped.wait()
    assert not out.exists()
    assert main([*command[3:], "--workers", "2"]) == 0
    assert log.read_text() == "x"  # the first student's code ran once
    first = out.read_bytes()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["identifier"], row["square"], row["log_det"], row["why"], row["automatic"]) for row in rows] == [
        ("(maximum)", "2", "2", "3", "4"),
        ("a", "2", "2", "", "4"),
        ("b", "2", "2", "", "4"),
        ("c", "2", "2", "", "4"),
        ("d", "0", "0", "", "0"),
    ]
    for record in (tmp_path / "marks").iterdir():
        record.unlink()
    assert main(command[3:]) == 0
    assert out.read_bytes() == first


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["identifier"]: row for row in csv.DictReader(file)}


def untested(folder: Path, name: str, out: Path) -> None:
    """Grade a submission that is no notebook, so that nothing is run."""
    (out.parent / f"{name}.ipynb").write_text("no notebook")
    grading.grade([out.parent / f"{name}.ipynb"], folder, out)


@pytest.mark.parametrize(("between", "encoding"), [(",", "utf-8"), (";", "utf-8-sig")])
def test_what_a_person_filled_in_stays(folder: Path, tmp_path: Path, between: str, encoding: str) -> None:
    out = tmp_path / "marks.csv"
    for name in ("early", "other"):
        untested(folder, name, out)
    rows = list(table(out).values())
    for row in rows:
        row |= {"square": "9", "why": "2.5", "by": f"B. of {row['identifier']}"}
    with out.open("w", newline="", encoding=encoding) as file:  # as a spreadsheet may save it
        writer = csv.DictWriter(file, list(rows[0]), delimiter=between)
        writer.writeheader()
        writer.writerows(rows)
    for name in ("early", "late"):
        untested(folder, name, out)
    made = table(out)
    assert list(made) == ["(maximum)", "early", "late", "other"]
    assert [row["square"] for row in made.values()] == ["2", "0", "0", "9"]  # what tests mark is marked anew
    assert [row["why"] for row in made.values()] == ["3", "2.5", "", "2.5"]
    assert [row["by"] for row in made.values()] == ["B. of (maximum)", "B. of early", "", "B. of other"]


@pytest.mark.parametrize("content", [b"my notes", b"identifier,encode\n", b"identifier,encode\na,1\n", b"\xff,\n"])
def test_a_file_that_is_no_table_of_the_assignment_is_not_replaced(
    folder: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "marks.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"out: got .*marks\.csv"):
        untested(folder, "a", tmp_path / "marks.csv")
    assert (tmp_path / "marks.csv").read_bytes() == content and not (tmp_path / "marks" / "a.json").exists()


def test_each_assignment_has_a_table_of_its_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ipynb").write_text("no notebook")
    monkeypatch.chdir(tmp_path)
    assert main(["grade", "a.ipynb", "--assignment", str(folder)]) == 0
    assert [path.name for path in tmp_path.glob("*.csv")] == [f"marks-{folder.name}.csv"]


@pytest.mark.parametrize("name", ["=1+2", "@a", "+3", "-x"])
def test_no_name_is_a_formula(folder: Path, tmp_path: Path, name: str) -> None:
    for _ in range(2):
        untested(folder, name, tmp_path / "marks.csv")
        assert list(table(tmp_path / "marks.csv")) == ["(maximum)", f"'{name}"]


def test_a_folder_for_each_student(folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "in"
    made = ["Ann_1/a.ipynb", "Bo_2/a.ipynb", "Bo_2/b.ipynb", ".git/c.ipynb", "Cy_3/._a.ipynb", ".d.ipynb"]
    for path in (*made, "Di_4/unpacked/a.ipynb", "Ed_5/a.pdf", "__MACOSX/a.txt", "read me.txt"):
        (given / path).parent.mkdir(parents=True, exist_ok=True)
        (given / path).write_text("no notebook")
    for _ in range(2):  # the pages of the first time, which lie among the students', are nobody's
        records = grading.grade([given], folder, given / "marks.csv")
        assert [record["identifier"] for record in records] == ["Ann_1", "Bo_2 a", "Bo_2 b", "Cy_3", "Di_4", "Ed_5"]
    assert (given / "marks" / "Ann_1.json").is_file()
    remarks = {record["identifier"]: record["remarks"] for record in records}
    assert remarks["Cy_3"] == remarks["Ed_5"] == ["the submission has no notebook"] != remarks["Di_4"]
    (given / "solution.ipynb").write_text("no notebook")
    with pytest.raises(ValueError, match=r"solution.ipynb beside .*Ann_1.*allowed: notebooks, or a folder a student"):
        grading.grade([given], folder, tmp_path / "marks.csv")
    with pytest.raises(ValueError, match="one folder with a folder for each student"):
        grading.grade([given / "Ann_1", given / "Bo_2"], folder, tmp_path / "marks.csv")


def test_the_same_code_twice_is_remarked_in_the_table_alone(folder: Path, tmp_path: Path) -> None:
    task, given = grading.load(folder), tmp_path / "in"
    given.mkdir()
    mine = [code("answer = 1")]
    for name, cells in {"a": mine, "b": [*mine, raw("words")], "c": [], "d": []}.items():
        (given / f"{name}.ipynb").write_text(json.dumps(notebook(cells)) if cells else "no notebook")
    for name in ("e", "f"):
        (given / f"{name}.ipynb").write_text(json.dumps(task.student))
    for _ in range(2):
        remarks = {}
        for record in grading.grade([given], folder, tmp_path / "marks.csv"):
            remarks[record["identifier"]] = [text for text in record["remarks"] if "same code" in text]
        assert remarks == {"a": ["the same code as b"], "b": ["the same code as a"]} | {name: [] for name in "cdef"}
    assert "the same code as b" in table(tmp_path / "marks.csv")["a"]["remarks"]
    assert "same code" not in (tmp_path / "marks" / "a.json").read_text() + (tmp_path / "marks" / "a.html").read_text()


def test_another_assignment_is_recognised(folder: Path) -> None:
    task = grading.load(folder)
    for name in grading.names():
        cells, remarks, _ = code_cells(json.dumps(grading.load(name).student).encode(), task)
        assert cells and remarks == [f"the submission looks like the assignment {name}"]
        assert code_cells(json.dumps(grading.load(name).student).encode(), grading.load(name))[1] == []
    assert code_cells(json.dumps(task.student).encode(), task)[1] == []


def test_marks_name_their_versions_and_other_code_marks_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ipynb").write_text("no notebook")
    first, again = (grading.grade([tmp_path / "a.ipynb"], folder, tmp_path / "marks.csv")[0] for _ in range(2))
    assert first == again
    assert first["made with"]["torch"] == torch.__version__ in (tmp_path / "marks" / "a.html").read_text()
    for package in ("1", "2"):
        monkeypatch.setattr(
            sys.modules[grading.grade.__module__], "_made_with", {"flow-priors": package, "torch": "1"}.copy
        )
        made = grading.grade([tmp_path / "a.ipynb"], folder, tmp_path / "marks.csv")[0]
        assert made["made with"]["flow-priors"] == package


def test_page_shows_no_markup_of_a_student(marks: Any, tmp_path: Path) -> None:
    marks(solved("print('<script>'); raise ValueError('<b>\\x1b[0m\\nno')"))
    page = (tmp_path / "marks" / "one.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "ValueError: &lt;b&gt; [0m no" in page


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.ipynb", "--assignment", "FOLDER"], [".", "--assignment", "FOLDER"], [".", "--assignment", "no-such"]],
)
def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["grade", *(str(folder) if text == "FOLDER" else text for text in arguments)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

"""The tests of an assignment as an archive for otter-grader, or for a grader of one's own.

Each question that tests mark is a file in otter-grader's exception-based format, whose cases run the very sources that
`companion.grading.grade` runs. Made again, it has the same bytes, and making it needs no otter-grader.
"""

import io
import json
import zipfile

from companion.grading.master import Assignment, Question, repository

_TEST = '''\
"""Question {name}: {points:g} points, if every case passes."""

from otter.test_files import test_case

OK_FORMAT = False
name = {name!r}
points = {points:g}
all_or_nothing = True
'''
_CASE = """

@test_case(hidden={hidden})
def case_{number}(env):
    exec({source}, dict(env))
"""
_README = """\
Tests of the assignment {name}
{line}

Keep this archive to yourself: it holds the hidden tests.

    tests/             a file for each question that tests mark, in otter-grader's exception-based format
    requirements.txt   what the tests need beside otter-grader
    otter_config.json  settings of otter-grader

{table}

One notebook, by otter-grader, where it and the book's package are installed:

    otter run -a {name}-autograder.zip submission.ipynb    (tried with otter-grader 7.0)

Many, in containers or on Gradescope: unpack the archive and run `otter generate` in its folder. The archive that
this makes has the scripts of your version of otter-grader beside these tests.
{package}

By a grader of your own: run the notebook's cells, then each function that `test_case` decorates, with the dictionary
of the notebook's names as its argument. A case that raises has failed; a question has its points if none has.

`companion grade` of the book's repository reads the same master and needs nothing of this.
"""


def archive(task: Assignment) -> bytes:
    """Content of a zip file with the tests, visible and hidden, of every question that tests mark."""
    title = f"Tests of the assignment {task.name}"
    table = "\n".join(f"    {q.name:<18} {q.points:g}{' by a person' if q.manual else ''}" for q in task.questions)
    address = repository()
    if address:
        needs, package = f"flow-priors @ git+{address}", "The book's package comes from its repository."
    else:
        needs = "# flow-priors, the book's package: from a copy of its repository (pip install PATH)"
        package = "Install the book's package in the container from a copy of its repository: no index has it."
    files = {
        "README.md": _README.format(name=task.name, line="=" * len(title), table=table, package=package),
        "otter_config.json": json.dumps({"lang": "python"}) + "\n",
        "requirements.txt": needs + "\n",
    }
    files |= {f"tests/{question.name}.py": _test_file(question) for question in task.questions if not question.manual}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name in sorted(files):
            made.writestr(zipfile.ZipInfo(name), files[name])  # which dates it 1980
    return buffer.getvalue()


def _test_file(question: Question) -> str:
    cases = (
        _CASE.format(number=number, hidden=text.startswith("# HIDDEN"), source=_quoted(text))
        for number, text in enumerate(question.tests, 1)
    )
    return _TEST.format(name=question.name, points=question.points) + "".join(cases)


def _quoted(text: str) -> str:
    """Python's literal of a test's source, over as many lines as it has."""
    plain = text.replace("\\", r"\\").replace('"""', r"\"\"\"")
    return f'"""\\\n{plain}\n"""'

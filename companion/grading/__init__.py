"""Coursework: what students get of a master notebook, and marks for what they hand in."""

from companion.grading.archive import archive
from companion.grading.grade import grade
from companion.grading.master import Assignment, Question, load, names

__all__ = ["Assignment", "Question", "archive", "grade", "load", "names"]

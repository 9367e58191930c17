"""Coursework: what students get of a master notebook, and marks for what they hand in."""

from companion.grading.archives import archive
from companion.grading.grader import grade
from companion.grading.master import Assignment, Question, load, names

__all__ = ["Assignment", "Question", "archive", "grade", "load", "names"]

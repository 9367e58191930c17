"""The processes that compute parts: they end with the one that started them, however it ended."""

import multiprocessing
import os
import signal
import time

import pytest

from companion.experiments import workers


def _waits(end):
    workers._alone()
    end.send("here")
    time.sleep(20)


def _starts_one_and_is_killed(end):
    multiprocessing.get_context("fork").Process(target=_waits, args=(end,)).start()
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_ends_when_its_parent_is_killed():
    here, there = multiprocessing.Pipe()
    parent = multiprocessing.get_context("fork").Process(target=_starts_one_and_is_killed, args=(there,))
    parent.start()
    there.close()
    assert here.poll(10) and here.recv() == "here"
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    assert here.poll(5)  # closed at its other end, which the worker held
    with pytest.raises((EOFError, ConnectionResetError)):
        here.recv()

"""Where the parts of a run are computed: in this process, in several, or on a Dask cluster."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Any

import torch

from companion._support import count, keep_freed_memory
from companion.experiments import fingerprint
from companion.experiments.parts import Done, Task, work

Runner = Callable[[Sequence[Task]], Iterator[tuple[int, Done]]]


def here(tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
    """Each task's number and outcome, computed one after the other in this process."""
    for number, task in enumerate(tasks):
        yield number, work(task)


def last_first(tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
    """As :func:`here`, from the last to the first: a part that leans on what an earlier one left behind shows."""
    for number in reversed(range(len(tasks))):
        yield number, work(tasks[number])


@contextmanager
def runner(workers: int = 1, scheduler: str | None = None) -> Iterator[Runner]:
    """What runs parts in `workers` processes of one thread each, or on the Dask cluster whose scheduler is named.

    One worker is this process, with as many threads as torch has here. ValueError for a number below 1, for both, or
    for a scheduler that does not answer; RuntimeError later, where a process of this machine dies.
    """
    count("workers", workers)
    if scheduler is not None:
        if workers != 1:
            raise ValueError(f"workers: got {workers} and a scheduler; allowed: one of the two")
        with _client(scheduler) as client:
            yield partial(_on_cluster, client)
    elif workers == 1:
        yield here
    else:
        # Threads of torch do not outlive a fork.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_alone) as pool:
            yield partial(_in_pool, pool)


def _alone() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the process that started this one says what a stop means
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it ended: nobody else would tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_pool(pool: ProcessPoolExecutor, tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
    numbers = {pool.submit(work, task): number for number, task in enumerate(tasks)}
    try:
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except BrokenProcessPool:
        raise RuntimeError("a worker process was ended (for want of memory?); run again to go on from there") from None
    finally:
        for future in numbers:
            future.cancel()


def _client(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("scheduler: needs dask.distributed; install flow-priors[dask]") from None
    try:
        return Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        given = f"{scheduler!r} ({type(error).__name__})"
        raise ValueError(f"scheduler: got {given}; allowed: the address of a running one, as tcp://host:8786") from None


def _on_cluster(client: Any, tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
    from distributed import as_completed as completed

    codes = {function: fingerprint.code(function.__module__) for function in {task.function for task in tasks}}
    # Dask computes a part again that a lost worker had; its key comes back once.
    numbers = {
        client.submit(_work_there, task, codes[task.function], pure=False): number for number, task in enumerate(tasks)
    }
    for future in completed(numbers, loop=client.loop):
        yield numbers[future], future.result()


def _work_there(task: Task, code: str) -> Done:
    if fingerprint.code(task.function.__module__) != code:
        raise RuntimeError("a worker of the cluster runs another version of the code; install the same one everywhere")
    torch.set_num_threads(1)
    return work(task)

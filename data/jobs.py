"""Run jobs in several processes. A crashed process loses only its own job, and none outlives its parent."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def run_jobs(workers: Sequence[Callable[[Any], Any]], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Run every job on one of the workers and yield (job index, result) as they finish.

    A worker is a picklable function that runs in its own process. If the process dies (a decoder's segmentation
    fault, the out-of-memory killer), the result is the reason, a str, and a new process replaces it. An
    exception in a worker is a bug and raised here. Closing the generator ends all processes.
    """
    pending = deque(enumerate(jobs))
    processes = [_Worker(function) for function in workers[: len(jobs)]]
    try:
        while busy := {worker.pipe: worker for worker in processes if worker.next_job(pending)}:
            for pipe in multiprocessing.connection.wait(list(busy)):
                worker: Any = busy[pipe]  # type: ignore[index]
                try:
                    error, is_result, value = worker.pipe.recv()
                except (EOFError, OSError):
                    error, is_result, value = None, True, worker.died()
                    processes[processes.index(worker)] = _Worker(worker.function)
                if error is not None:
                    raise error from RuntimeError(f"in a worker process:\n{value}")
                worker.started = True
                if is_result:
                    index, worker.index = worker.index, None
                    yield index, value
    finally:
        for worker in processes:
            worker.process.kill()
            worker.process.join()


class _Worker:
    """The parent's side of one process: its pipe and the index of its current job, None when idle."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # forking after threads have started can deadlock
        self.function = function
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # the process then has the only other end, so its death causes an end of file
        self.index: int | None = None
        self.started = False

    def next_job(self, pending: deque) -> bool:
        """Send a job if idle. Returns False if it is idle and no job is left."""
        if self.index is None and pending:
            self.index, job = pending.popleft()
            with contextlib.suppress(OSError):  # it has died; the pipe's end of file will show that
                self.pipe.send(job)
        return self.index is not None

    def died(self) -> str:
        """Return why the process ended. Raises RuntimeError if it never started, as no other would either."""
        self.process.join()
        code = self.process.exitcode or 0
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if not self.started:
            raise RuntimeError(f"a worker process died before its first job ({reason})")
        memory = "; perhaps out of memory" if reason == "SIGKILL" else ""
        return f"the process that decoded it died ({reason}{memory})"


def _serve(pipe: multiprocessing.connection.Connection, function: Callable[[Any], Any]) -> None:
    """Run in a worker process: take jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, if a job imports it: the jobs already run in parallel
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send((None, False, None))  # it has started
        while True:
            job = pipe.recv()
            try:
                pipe.send((None, True, function(job)))
            except Exception as error:
                pipe.send((error, True, traceback.format_exc()))


def _die_with_parent() -> None:
    """End this process at once when the parent ends, even by SIGKILL, so that it stops writing."""
    multiprocessing.parent_process().join()  # type: ignore[union-attr]  # a worker has one
    os._exit(1)

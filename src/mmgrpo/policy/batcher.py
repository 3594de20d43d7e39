"""Calls that arrive at the same time, from many threads, are generated as one batch.

A batch starts when every worker of a rollout waits for an answer, so that its make-up doesn't depend on timing.
The same holds for DSPy's evaluators in a prompt search (`evaluator_runs.py`). Calls from elsewhere (a notebook cell)
start once no new one has come for a moment.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

QUIET_SECONDS = 0.02  # how long calls from outside a rollout wait for company
STALL_SECONDS = 120.0  # without a call or an answer, after which the calls that wait are answered without the others
IDLE_SECONDS = 2.0  # after which the generating thread ends; the next call starts another


class _Ticket(Generic[Question, Answer]):
    def __init__(self, question: Question):
        self.question = question
        self.answered = threading.Event()
        self.answer: Answer | None = None
        self.error: BaseException | None = None


class Batcher(Generic[Question, Answer]):
    """Runs `generate` on lists of questions, one list at a time.

    During a rollout the thread that started it generates (`drive`), so that sampling and training share one team of
    torch's threads; two teams on one processor slow each other down. Other calls are served by a thread of our own.
    """

    def __init__(self, generate: Callable[[Sequence[Question]], list[Answer]]):
        self._generate = generate
        self._generating = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._last_arrival = 0.0
        self._workers = 0
        self._expected = 0
        self._broken: BaseException | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def workers(self, count: int) -> Iterator[Callable[[], None]]:
        """Announce `count` workers; each calls the yielded function once, when it has no more work.

        Their calls are answered while `drive` runs, which is to be called from inside.
        """
        remaining = count

        def leave() -> None:
            nonlocal remaining
            with self._changed:
                remaining -= 1
                self._workers -= 1
                self._changed.notify_all()

        with self._changed:
            self._workers += count
            self._changed.notify_all()
        try:
            yield leave
        finally:
            with self._changed:
                self._workers -= remaining
                self._broken = None
                if self._waiting:  # calls from outside that came meanwhile
                    self._start_thread()
                self._changed.notify_all()

    @property
    def rolling(self) -> bool:
        """Whether a rollout's workers are at work."""
        return self._workers > 0

    def expect(self, calls: int) -> None:
        """From now on, calls from outside a rollout are answered once so many wait; 0: once no new one comes."""
        with self._changed:
            self._expected = calls
            self._changed.notify_all()

    def drive(self) -> None:
        """Generate on the calling thread until all workers have left; an interrupt reaches every waiting caller."""
        try:
            while batch := self._batch_of_workers():
                self._answer(batch)
        except BaseException as error:
            with self._changed:
                self._broken = error
                waiting, self._waiting = self._waiting, []
            _fail(waiting, error)
            raise

    def ask(self, question: Question) -> Answer:
        """Wait for the batch that answers `question`; an error of the batch is raised for each of its callers."""
        ticket: _Ticket[Question, Answer] = _Ticket(question)
        with self._changed:
            if self._broken is not None:
                raise self._broken
            self._waiting.append(ticket)
            self._last_arrival = time.monotonic()
            self._start_thread()
            self._changed.notify_all()
        ticket.answered.wait()
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer

    def _start_thread(self) -> None:
        if self._thread is None and not self._workers:
            self._thread = threading.Thread(target=self._serve, name="mmgrpo-batcher")
            self._thread.start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                batch = self._batch_from_outside()
                if not batch:
                    self._thread = None
                    return
            self._answer(batch)

    def _answer(self, batch: list[_Ticket]) -> None:
        try:
            with self._generating:
                answers = self._generate([ticket.question for ticket in batch])
            for ticket, answer in zip(batch, answers, strict=True):
                ticket.answer = answer
        except Exception as error:  # whatever it is, the callers must hear of it
            _fail(batch, error)
        except BaseException as error:
            _fail(batch, error)
            raise
        for ticket in batch:
            ticket.answered.set()

    def _batch_of_workers(self) -> list[_Ticket]:
        """All waiting tickets once every worker waits; empty when the workers have left.

        A worker that holds a lock while it waits here would keep others, which wait for the lock, from ever coming.
        """
        with self._changed:
            while not self._changed.wait_for(lambda: len(self._waiting) >= self._workers, STALL_SECONDS):
                if self._waiting and time.monotonic() - self._last_arrival >= STALL_SECONDS:
                    warnings.warn(
                        f"{len(self._waiting)} of {self._workers} runs have waited {STALL_SECONDS:.0f} s for the others: they "
                        "are answered without them. Does the program hold a lock while it calls a module, or is a tool so slow?",
                        stacklevel=2,
                    )
                    break
            return self._take() if self._workers else []

    def _batch_from_outside(self) -> list[_Ticket]:
        """All waiting tickets once those that are expected have come, or, where none are, no new one has for a moment.

        Empty after idling, or when workers come.
        """
        idle_since = time.monotonic()
        with self._changed:
            while not self._workers:
                quiet = time.monotonic() - self._last_arrival
                if not self._waiting:
                    if time.monotonic() - idle_since >= IDLE_SECONDS:
                        return []
                    self._changed.wait(IDLE_SECONDS)
                elif quiet < (patience := self._patience()):
                    self._changed.wait(patience - quiet)
                else:
                    return self._take()
            return []

    def _patience(self) -> float:
        """Seconds without a call after which the waiting calls from outside a rollout are answered."""
        if not self._expected:
            return QUIET_SECONDS
        return STALL_SECONDS if len(self._waiting) < self._expected else 0.0

    def _take(self) -> list[_Ticket]:
        batch, self._waiting = self._waiting, []
        return batch


def _fail(tickets: Sequence[_Ticket], error: BaseException) -> None:
    for ticket in tickets:
        ticket.error = error
        ticket.answered.set()

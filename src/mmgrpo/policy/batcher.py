"""Calls that arrive at the same time, from many threads, are generated as one batch.

A batch starts when every worker of a rollout waits for an answer, so that its make-up doesn't depend on timing.
Calls from elsewhere (DSPy's own evaluators and optimizers, a notebook cell) start once no new one has come
for a moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

QUIET_SECONDS = 0.02  # how long calls from outside a rollout wait for company
IDLE_SECONDS = 2.0  # after which the generating thread ends; the next call starts another


class _Ticket(Generic[Question, Answer]):
    def __init__(self, question: Question):
        self.question = question
        self.answered = threading.Event()
        self.answer: Answer | None = None
        self.error: BaseException | None = None


class Batcher(Generic[Question, Answer]):
    """Runs `generate` on lists of questions, one list at a time, on a thread of its own."""

    def __init__(self, generate: Callable[[Sequence[Question]], list[Answer]]):
        self._generate = generate
        self._changed = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._last_arrival = 0.0
        self._workers = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def workers(self, count: int) -> Iterator[Callable[[], None]]:
        """Announce `count` workers; each calls the yielded function once, when it has no more work."""
        remaining = count

        def leave() -> None:
            nonlocal remaining
            with self._changed:
                remaining -= 1
                self._workers -= 1
                self._changed.notify_all()

        with self._changed:
            self._workers += count
        try:
            yield leave
        finally:
            with self._changed:
                self._workers -= remaining
                self._changed.notify_all()

    def ask(self, question: Question) -> Answer:
        """Wait for the batch that answers `question`; an error of the batch is raised for each of its callers."""
        ticket: _Ticket[Question, Answer] = _Ticket(question)
        with self._changed:
            self._waiting.append(ticket)
            self._last_arrival = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="mmgrpo-batcher")
                self._thread.start()
            self._changed.notify_all()
        ticket.answered.wait()
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer

    def _serve(self) -> None:
        while True:
            with self._changed:
                batch = self._next_batch()
                if not batch:
                    self._thread = None
                    return
            try:
                answers = self._generate([ticket.question for ticket in batch])
                for ticket, answer in zip(batch, answers, strict=True):
                    ticket.answer = answer
            except BaseException as error:  # whatever it is, the callers must hear of it
                for ticket in batch:
                    ticket.error = error
            for ticket in batch:
                ticket.answered.set()

    def _next_batch(self) -> list[_Ticket]:
        """All waiting tickets once it is time; empty after idling. Called with the lock held."""
        idle_since = time.monotonic()
        while True:
            if not self._waiting:
                if self._workers == 0 and time.monotonic() - idle_since >= IDLE_SECONDS:
                    return []
                self._changed.wait(IDLE_SECONDS)
                continue
            if self._workers:
                if len(self._waiting) >= self._workers:
                    break
                self._changed.wait()
                continue
            quiet = time.monotonic() - self._last_arrival
            if quiet >= QUIET_SECONDS:
                break
            self._changed.wait(QUIET_SECONDS - quiet)
        batch, self._waiting = self._waiting, []
        return batch

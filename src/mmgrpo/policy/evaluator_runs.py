"""DSPy's evaluators tell the batcher how many of their runs can ask at a time, so that no batch depends on timing."""

from __future__ import annotations

import threading
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from mmgrpo.policy.batcher import Batcher


class EvaluatorRuns(BaseCallback):
    """A callback of DSPy's, for a search that evaluates one program after the other.

    An evaluator of `threads` threads has that many runs under way until fewer are left. Each of them either waits for
    the policy or will ask it, or end, without any other's doing.
    """

    def __init__(self, batcher: Batcher):
        self._batcher = batcher
        self._program: dspy.Module | None = None  # under evaluation
        self._threads = 0
        self._left = 0  # runs that have not ended
        self._running: set[str] = set()  # their calls, as DSPy names them
        self._lock = threading.Lock()

    def on_evaluate_start(self, call_id: str, instance: dspy.Evaluate, inputs: dict[str, Any]) -> None:
        """Expect the evaluator's runs."""
        with self._lock:
            self._program = inputs["program"]
            self._threads = inputs["num_threads"] or instance.num_threads or dspy.settings.num_threads
            self._left = len(inputs["devset"] or instance.devset)
            self._expect()

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Expect nothing any more, also where the evaluator was stopped."""
        with self._lock:
            self._program, self._left = None, 0
            self._running.clear()
            self._expect()

    def on_module_start(self, call_id: str, instance: dspy.Module, inputs: dict[str, Any]) -> None:
        """Know the call of a whole program from those of its modules."""
        with self._lock:
            if instance is self._program:
                self._running.add(call_id)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Expect one run less, if there is none to begin in its place."""
        with self._lock:
            if call_id in self._running:
                self._running.remove(call_id)
                self._left -= 1
                self._expect()

    def _expect(self) -> None:
        self._batcher.expect(max(0, min(self._threads, self._left)))

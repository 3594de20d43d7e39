"""Collects the language-model calls of one program run, with module names and parse results.

The recorder travels in DSPy's settings, so that it is found in every thread that DSPy itself starts for the
run. It is a DSPy callback too: the adapter's parse events tell which replies parsed, whatever the adapter.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections import Counter
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from mmgrpo.hashing import seed_of
from mmgrpo.trajectory import Call

SETTING = "mmgrpo_recorder"


class Recorder(BaseCallback):
    """The calls of one run that `engine` answers for its program's modules, in the order in which they were made."""

    def __init__(self, program: dspy.Module, engine: object, seed: tuple[object, ...]):
        named = program.named_predictors()
        stages = Counter(predictor.stage for _, predictor in named)
        self._names = {id(predictor): name for name, predictor in named}
        self._copied = {predictor.stage: name for name, predictor in named if stages[predictor.stage] == 1}
        self.engine = engine
        self._seed = seed
        self._started: dict[str, None] = {}
        self._made: Counter[str] = Counter()
        self._outside: Counter[int] = Counter()
        self._slots: list[Call | None] = []
        self._parsing = _Parses()
        self._lock = threading.Lock()
        self.fault: BaseException | None = None  # of the sampler: it ends the run, whatever the program makes of it

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(call for call in self._slots if call is not None)

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Modules that ran and never asked the engine: another language model answered them."""
        return tuple(name for name in self._started if name not in self._made)

    def begin(self) -> tuple[int, str, int, int] | None:
        """Announce a call: (slot, module, invocation, seed); None where no named predictor is calling."""
        module = self._caller()
        if module is None:
            return None
        with self._lock:
            invocation = self._made[module]
            self._made[module] += 1
            self._slots.append(None)
            return len(self._slots) - 1, module, invocation, seed_of(*self._seed, module, invocation)

    def outside(self, asked: int) -> int:
        """Seed of a call that no named predictor makes, by what is `asked` and how often this run asked it before."""
        with self._lock:
            self._outside[asked] += 1
            return seed_of(*self._seed, "outside", asked, self._outside[asked])

    def end(self, slot: int, call: Call) -> None:
        self._slots[slot] = call

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if (name := self._name(instance)) is not None:
            self._started[name] = None

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        # By position, as an adapter may name them otherwise; where a class inherits `parse`, DSPy doesn't name them at all.
        given = (*inputs["args"], *inputs["kwargs"].values()) if "args" in inputs else inputs.values()
        self._parsing.open.append((instance, tuple(given)))

    def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        adapter, given = self._parsing.open.pop()
        if any(outer is adapter for outer, _ in self._parsing.open):
            return  # a parse within a parse, as where a subclass asks its base: the outer one has the last word
        signature, text = given
        parsed = 1.0 if exception is None else self._parsed_share(adapter, signature, text)
        module = self._caller()
        with self._lock:
            for slot, call in enumerate(self._slots):
                if (
                    call is not None
                    and (call.module, call.text) == (module, text)
                    and call.status in ("unread", "truncated")
                ):
                    status = (
                        "ok" if exception is None else "truncated" if call.status == "truncated" else "format_failure"
                    )
                    self._slots[slot] = dataclasses.replace(call, status=status, parsed=parsed)
                    return

    def _caller(self) -> str | None:
        """The innermost calling module that is a named predictor of the program, or a copy of one (`dspy.BestOfN`)."""
        names = (self._name(module) for module in reversed(dspy.settings.caller_modules or []))
        return next((name for name in names if name is not None), None)

    def _name(self, module: Any) -> str | None:
        return self._names.get(id(module)) or self._copied.get(getattr(module, "stage", None))

    def _parsed_share(self, adapter: dspy.Adapter, signature: type[dspy.Signature], text: str) -> float:
        """Share of the output fields that the adapter can read when asked for each alone."""
        fields = signature.output_fields
        self._parsing.open.append((adapter, ()))  # what it parses now says nothing of a call
        try:
            return sum(_reads(adapter, signature, name, text) for name in fields) / len(fields)
        finally:
            self._parsing.open.pop()


def _reads(adapter: dspy.Adapter, signature: type[dspy.Signature], field: str, text: str) -> bool:
    """Whether the adapter reads this output field when asked for it alone."""
    for other in signature.output_fields:
        if other != field:
            signature = signature.delete(other)
    try:
        inspect.unwrap(type(adapter).parse)(adapter, signature, text)
    except AdapterParseError:
        return False
    return True


class _Parses(threading.local):
    """The parses that a thread is in, outermost first: the adapter and what it was given."""

    def __init__(self):
        self.open: list[tuple[dspy.Adapter, tuple[Any, ...]]] = []

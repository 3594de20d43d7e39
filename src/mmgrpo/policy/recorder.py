"""Collects the language-model calls of one program run, with module names and parse results.

The recorder travels in DSPy's settings, so that it is found in every thread that DSPy itself starts for the
run. It is a DSPy callback too: the adapter's parse events tell which replies parsed, whatever the adapter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from mmgrpo.trajectory import Call

SETTING = "mmgrpo_recorder"


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on all parts, the same in every process."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Recorder(BaseCallback):
    """The calls of one run, in the order in which they were made."""

    def __init__(self, program: dspy.Module, seed: tuple[object, ...]):
        self._names = {id(predictor): name for name, predictor in program.named_predictors()}
        self._seed = seed
        self._made: Counter[str] = Counter()
        self._slots: list[Call | None] = []
        self._parsing: dict[str, tuple[Any, dict]] = {}
        self._lock = threading.Lock()

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(call for call in self._slots if call is not None)

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

    def end(self, slot: int, call: Call) -> None:
        self._slots[slot] = call

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._parsing[call_id] = (instance, inputs)

    def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        adapter, inputs = self._parsing.pop(call_id)
        signature, text = inputs["signature"], inputs["completion"]
        parsed = 1.0 if exception is None else _parsed_share(adapter, signature, text)
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
        """The innermost calling module that is a named predictor of the program."""
        for module in reversed(dspy.settings.caller_modules or []):
            if id(module) in self._names:
                return self._names[id(module)]
        return None


def _parsed_share(adapter: dspy.Adapter, signature: type[dspy.Signature], text: str) -> float:
    """Share of the output fields that the adapter can read when asked for each alone."""
    read = 0
    for name in signature.output_fields:
        alone = signature
        for other in signature.output_fields:
            if other != name:
                alone = alone.delete(other)
        try:
            type(adapter).parse.__wrapped__(adapter, alone, text)
            read += 1
        except AdapterParseError:
            continue
    return read / len(signature.output_fields)

"""Records of known content, for tests of records and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmgrpo.records import Record, Score


def record(scores: Sequence[float] = (1.0, 0.0), *, outcomes: Sequence[str] = (), **changes: Any) -> Record:
    """A finished run of Banking77 with these test scores; `changes` replace any field of the record."""
    ends = outcomes or ["completed"] * len(scores)
    fields: dict[str, Any] = {
        "task": "banking77", "model": "smollm2-135m", "strategy": "vanilla", "profile": "laptop", "seed": 0,
        "smoke": False, "source": "embedded", "fingerprint": "f00d", "settings": {"grpo": {"steps": 24}, "seed": 0},
        "versions": {"torch": "2.13.0"}, "commit": "abc1234",
        "machine": {"cpu": "a CPU", "cores": 2, "gpu": None, "precision": "fp32"},
        "scores": tuple(Score(f"e{i}", x, end, {}) for i, (x, end) in enumerate(zip(scores, ends, strict=True))),
        "curve": (), "validation": (), "seconds": {"optimize": 1800.0, "evaluate": 900.0},
        "tokens": {"prompt": 4000, "completion": 2000, "calls": 40},
        "peak_memory_gb": 1.5, "program": {}, "notes": {},
    }  # fmt: skip
    return Record(**fields | changes)


def curve(rewards: Sequence[float], **statistics: float) -> tuple[dict[str, float], ...]:
    """Curve entries of updates 1, 2, ... with these rewards and the same `statistics` in each."""
    return tuple(
        {"step": step, "reward": reward, "format_failures": 0.25} | statistics for step, reward in enumerate(rewards, 1)
    )


def outline() -> dict[str, Any]:
    """What training keeps of two runs of one input: run 1 searched once, so `fill` repeated that call."""

    def call(module: str, invocation: int, status: str = "ok") -> dict[str, Any]:
        return {"module": module, "invocation": invocation, "tokens": 4, "status": status}

    def member(rollout: int, place: int) -> dict[str, Any]:
        return {"rollout": rollout, "places": [place], "advantage": 1.0 - 2 * rollout}

    runs = [[call("plan", 0), call("search", 0), call("search", 1)], [call("plan", 0), call("search", 0, "truncated")]]
    return {
        "step": 3,
        "example": "e0",
        "runs": [
            {"rollout": g, "reward": 1.0 - g, "outcome": "completed", "calls": calls} for g, calls in enumerate(runs)
        ],
        "groups": [
            {"key": ["plan", 0], "members": [member(0, 0), member(1, 0)]},
            {"key": ["search", 0], "members": [member(0, 1), member(1, 1)]},
            {"key": ["search", 1], "members": [member(0, 2), member(1, 1)]},
        ],
    }

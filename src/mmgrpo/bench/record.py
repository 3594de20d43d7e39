"""What a benchmark found, and the file that keeps it: `figures/bench.json`, a list of records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmgrpo.errors import UserError
from mmgrpo.json_files import write_json
from mmgrpo.policy import Policy


class Skipped(Exception):
    """What a benchmark needs isn't here; says what, and how to get it."""


@dataclass(frozen=True)
class Size:
    """How large the benchmarks are; the defaults are those of `make bench`."""

    inputs: int = 2
    rollouts: int = 6  # of each input
    completion: int = 40  # random tokens of each completion that is trained on
    sampled: int = 48  # tokens of each completion that is sampled, no fewer and no more
    token_budget: int = 4096  # most tokens of one forward pass, ours (distinct ones) and the peer's (padded ones)
    groups: tuple[int, ...] = (2, 4, 8, 16)
    prompts: tuple[int, ...] = (256, 512, 1024, 2048)  # tokens
    modules: tuple[int, ...] = (1, 2, 4)
    matrix: int = 2048  # side of the square matrices whose product gives the machine's peak
    runs: int = 3  # timings of each side, of which the median counts


@dataclass(frozen=True)
class Setup:
    """What every benchmark is given. `make_policy` can be pickled, as memory is measured in other processes."""

    make_policy: Callable[[], Policy]
    machine: str
    size: Size = Size()


@dataclass(frozen=True)
class Target:
    """What we want of a ratio."""

    bound: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.bound:g}"


@dataclass(frozen=True)
class Comparison:
    """One number of ours beside a peer's, measured in the same run."""

    benchmark: str
    what: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float  # of a speed: how many times faster we are; of a cost: ours over the peer's
    target: str | None
    met: bool | None
    runs: int
    machine: str
    details: dict[str, float] = field(default_factory=dict)  # what else was measured, by name
    growth: tuple[str, float] | None = None  # where it belongs to a curve: what grows, and how large it is here

    @staticmethod
    def of(setup: Setup, benchmark: str, what: str, *, ratio: float, target: Target | None, **fields) -> Comparison:
        runs = fields.pop("runs", setup.size.runs)
        return Comparison(
            benchmark=benchmark, what=what, ratio=ratio, target=None if target is None else str(target),
            met=None if target is None else target.met(ratio), runs=runs, machine=setup.machine, **fields,
        )  # fmt: skip


def read(file: Path) -> list[Comparison]:
    """The records of `file`; none where there is no file."""
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [Comparison(**entry | {"growth": entry["growth"] and tuple(entry["growth"])}) for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} can't be read ({error}): delete it and measure again.") from None


def write(comparisons: list[Comparison], file: Path) -> Path:
    return write_json([asdict(comparison) for comparison in comparisons], file)

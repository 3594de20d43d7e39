"""What a running grid says: on a terminal a live line for each running cell and one for the whole, else plain lines."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Self, TextIO

from tqdm import tqdm


def clock(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds where it's less than an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


@dataclass
class _Running:
    name: str
    expected: float
    started: float
    place: int  # of its line on a terminal
    bar: tqdm | None


class Progress:
    """Lines of a grid. `left` is always the time left for the whole, in seconds."""

    def __init__(self, cells: int, stream: TextIO | None = None):
        self.cells = cells
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream.isatty()
        self.ended_cells = 0
        self.running: dict[str, _Running] = {}
        self.whole = self._bar(0, max(cells, 1)) if self.live and cells else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.running.values():
            if one.bar is not None:
                one.bar.close()
        if self.whole is not None:
            self.whole.close()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.live:
            tqdm.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def begin(self, name: str, expected: float, left: float) -> None:
        """A cell starts that is expected to take so many seconds."""
        place = min(set(range(1, len(self.running) + 2)) - {one.place for one in self.running.values()})
        bar = self._bar(place, max(expected, 1)) if self.live else None
        self.running[name] = _Running(name, expected, time.monotonic(), place, bar)
        if not self.live:
            begun = self.ended_cells + len(self.running)
            self.say(f"[{begun}/{self.cells}] {name} (about {clock(left)} left)")

    def end(self, name: str, result: str) -> None:
        """A cell has ended; `result` says how."""
        one = self.running.pop(name)
        self.ended_cells += 1
        took = clock(time.monotonic() - one.started)
        if one.bar is not None:
            one.bar.close()
        self.say(f"    {name}: {result} in {took}")

    def passed(self, name: str) -> float:
        """Seconds that a running cell has taken so far."""
        return time.monotonic() - self.running[name].started

    def tick(self, left: float) -> None:
        """Bring the live lines up to date."""
        if self.whole is None:
            return
        for one in self.running.values():
            passed = time.monotonic() - one.started
            one.bar.n = min(passed, one.bar.total)
            one.bar.set_description_str(f"{one.name}: {clock(passed)} of about {clock(one.expected)}")
        self.whole.n = self.ended_cells
        self.whole.set_description_str(f"{self.ended_cells} of {self.cells} cells, about {clock(left)} left")

    def _bar(self, place: int, total: float) -> tqdm:
        return tqdm(total=total, position=place, file=self.stream, leave=False, bar_format="{desc} |{bar:20}|")

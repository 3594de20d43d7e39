"""Benchmarks: every figure is a ratio of two things measured in the same run, side by side.

Each result is written as it comes, so that an interrupted run goes on where it stopped; a finished one is measured
again after its file `bench.json` is deleted, or one benchmark by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from mmgrpo import policy
from mmgrpo.bench import measure, memory, peak, record, report, sampling, scaling, training, whole_step
from mmgrpo.bench.record import Comparison, Setup, Skipped
from mmgrpo.errors import UserError, nearest
from mmgrpo.settings import PolicySettings

Benchmark = Callable[[Setup], list[Comparison]]

BENCHMARKS: dict[str, tuple[Benchmark, float]] = {  # with minutes on two cores, guessed, for the time left
    "peak": (peak.compare, 1),
    "sampling": (sampling.against_generate, 3),
    "sampling_vllm": (sampling.against_vllm, 4),
    "group_size": (scaling.group_size, 3),
    "prompt_length": (scaling.prompt_length, 4),
    "modules": (scaling.modules, 3),
    "memory": (memory.compare, 5),
    "training": (training.one_module, 12),
    "training_modules": (training.two_modules, 5),
    "training_hops": (training.four_hops, 4),
    "step": (whole_step.compare, 15),
    "training_full": (training.full, 17),
}
ONLY_FULL = frozenset({"training_full"})  # with TRL's step of a quarter of an hour
MODEL = "smollm2-135m"
MAX_TOKENS = 64  # of a reply in the whole step


def chosen(only: str, full: bool) -> list[str]:
    """The benchmarks to run; raises UserError for an unknown name."""
    if only and only not in BENCHMARKS:
        raise UserError(f"Unknown benchmark {only!r}; {nearest(only, list(BENCHMARKS))}.")
    return [only] if only else [name for name in BENCHMARKS if full or name not in ONLY_FULL]


def embedded_setup() -> Setup:
    """The embedded model in fp32, for which the targets are."""
    settings = PolicySettings(precision="fp32", max_tokens=MAX_TOKENS)
    return Setup(partial(policy.load, MODEL, settings, 0), measure.machine())


def run(names: Sequence[str], setup: Setup, folder: Path, *, again: bool = False) -> list[Path]:
    """Measure what `folder` doesn't have of this machine yet, or all of it `again`; returns the files written."""
    file = folder / "bench.json"
    kept = [one for one in record.read(file) if one.machine == setup.machine and one.benchmark in BENCHMARKS]
    done = set() if again else {one.benchmark for one in kept}
    todo = [name for name in names if name not in done]
    bar_format = "{desc}{percentage:3.0f}%|{bar}| {elapsed} passed, {remaining} left ({total:g} min guessed)"
    with tqdm(total=sum(BENCHMARKS[name][1] for name in todo), bar_format=bar_format) as bar:
        for name in todo:
            benchmark, minutes = BENCHMARKS[name]
            bar.set_description(f"{name} (about {minutes:g} min)")
            try:
                kept = [one for one in kept if one.benchmark != name] + benchmark(setup)
            except Skipped as why:
                bar.write(str(why))
            record.write(sorted(kept, key=lambda one: list(BENCHMARKS).index(one.benchmark)), file)
            bar.update(minutes)
    found = record.read(file)
    return [file, *report.write(found, folder)] if found else [file]

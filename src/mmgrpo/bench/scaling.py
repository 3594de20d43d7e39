"""How the cost of our training step grows: with the group, with the prompt, with the number of modules."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mmgrpo.bench import shapes
from mmgrpo.bench.measure import side_by_side
from mmgrpo.bench.record import Comparison, Setup, Size, Target
from mmgrpo.bench.training import our_step

ROLLOUTS = 4  # where it isn't the group that grows
MODULE_PROMPT = 512  # tokens, where it isn't the prompt that grows


def group_size(setup: Setup) -> list[Comparison]:
    policy, sizes = setup.make_policy(), setup.size.groups
    rows = {size: shapes.one_module(policy.tokenizer, replace(setup.size, rollouts=size)).rows for size in sizes}
    baseline = max(size for size in sizes if size <= max(sizes) // 4)
    return _curve(setup, policy, "group_size", "group size", rows, baseline, {max(sizes): Target(2, at_most=True)})


def prompt_length(setup: Setup) -> list[Comparison]:
    policy, size = setup.make_policy(), _few(setup)
    rows = {length: shapes.random_prompts(policy.tokenizer, size, length=length).rows for length in setup.size.prompts}
    return _curve(setup, policy, "prompt_length", "prompt length", rows, min(rows), {})


def modules(setup: Setup) -> list[Comparison]:
    policy, size = setup.make_policy(), _few(setup)
    rows = {
        count: shapes.random_prompts(policy.tokenizer, size, length=MODULE_PROMPT, modules=count).rows
        for count in setup.size.modules
    }
    return _curve(setup, policy, "modules", "modules", rows, min(rows), {})


def _few(setup: Setup) -> Size:
    return replace(setup.size, rollouts=min(ROLLOUTS, setup.size.rollouts))


def _curve(
    setup: Setup, policy, benchmark: str, growing: str, rows: Mapping[int, tuple], baseline: int, targets: Mapping
) -> list[Comparison]:
    """Seconds of a step on each set of rows, beside those of the baseline."""
    with ExitStack() as stack:
        steps = {
            place: our_step(policy, some, setup.size, Path(stack.enter_context(TemporaryDirectory())))
            for place, some in rows.items()
        }
        steps[baseline]()  # warms up
        seconds = dict(zip(steps, side_by_side(list(steps.values()), setup.size.runs), strict=True))
    return [
        Comparison.of(
            setup, benchmark, f"training step, {growing} {place}", ours=seconds[place], peer=seconds[baseline],
            peer_name=f"ours, {growing} {baseline}", unit="s", ratio=seconds[place] / seconds[baseline],
            target=targets.get(place), details={"tokens": shapes.all_tokens(some)}, growth=(growing, place),
        )
        for place, some in rows.items()
    ]  # fmt: skip

"""Is there something to learn, and something to learn from? Measured for a task before any training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmgrpo import paths, profiles, rollout
from mmgrpo.errors import UserError
from mmgrpo.hashing import sha256_of
from mmgrpo.json_files import write_json
from mmgrpo.policy.merging import WEIGHTS
from mmgrpo.study import Study
from mmgrpo.trajectory import Trajectory

FILE = paths.DATA / "headroom.json"  # of the embedded policy and rows under the laptop profile


@dataclass(frozen=True)
class Headroom:
    """Scores in [0, 1] of one task under its vanilla program."""

    task: str
    examples: int  # of the validation split
    vanilla: float  # greedy
    standard_error: float
    chance: float
    oracle: float
    parsed: dict[str, float]  # share of replies that parsed, for each module
    informative: float  # share of the inputs whose sampled runs differ in reward: the others teach nothing


def measure(ready: Study, *, inputs: int, rollouts: int = 6) -> Headroom:
    """Run the vanilla program greedily on the validation split, and `rollouts` times on some training inputs."""
    greedy = ready.evaluate(ready.program, ready.splits.valid, "validation")
    scores = np.array([rollout.score(run) for run in greedy if run.outcome != "unscorable"])
    sampling = ready.sampling
    lm = ready.policy.lm(**sampling.model_dump())
    sampled = rollout.run(
        ready.program,
        rollout.jobs_for(ready.splits.train[:inputs], rollouts, ready.cell.seed),
        lm=lm,
        metric=ready.task.judge,
        format_failure_reward=ready.grpo.format_failure_reward,
        progress="rollouts",
    )
    return Headroom(
        task=ready.task.title,
        examples=len(scores),
        vanilla=float(scores.mean()),
        standard_error=float(scores.std(ddof=1) / len(scores) ** 0.5),
        chance=ready.task.chance(ready.splits),
        oracle=oracle_score(ready),
        parsed=parse_rates(greedy),
        informative=informative_share(sampled),
    )


def keep(measured: Sequence[Headroom], profile: str, file: Path = FILE) -> Path:
    """Write what was measured of the embedded policy, with the hash of the adapter that it is true of.

    Raises UserError for a smoke profile.
    """
    if profiles.load(profile).smoke:
        raise UserError(f"{profile} is a smoke profile, whose numbers mean nothing: keep those of another one.")
    policy = sha256_of(paths.POSTTRAINED_ADAPTER / WEIGHTS)
    return write_json({"profile": profile, "adapter": policy, "tasks": [asdict(each) for each in measured]}, file)


def kept(file: Path = FILE) -> list[Headroom]:
    """What the project measured and keeps."""
    return [Headroom(**task) for task in json.loads(file.read_text(encoding="utf-8"))["tasks"]]


def oracle_score(ready: Study) -> float:
    """The judge's mean score of right answers."""
    judged = [ready.task.judge(example, ready.task.oracle(example)).score for example in ready.splits.valid]
    return float(np.mean(judged))


def parse_rates(runs: Sequence[Trajectory]) -> dict[str, float]:
    """Share of replies that parsed, for each module that was called."""
    asked, parsed = Counter(), Counter()
    for call in (call for run in runs for call in run.calls):
        asked[call.module] += 1
        parsed[call.module] += call.status == "ok"
    return {module: parsed[module] / asked[module] for module in asked}


def informative_share(runs: Sequence[Trajectory]) -> float:
    """Share of the examples whose runs don't all have one reward; runs that couldn't be scored don't count."""
    rewards: dict[str, set[float]] = {}
    for run in runs:
        known = rewards.setdefault(run.example, set())
        if run.reward is not None:
            known.add(run.reward)
    return sum(len(found) > 1 for found in rewards.values()) / len(rewards)

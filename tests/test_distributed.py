"""Two processes that train together do what one does alone."""

import os
import socket
from pathlib import Path

import dspy
import pytest
import torch
from tiny_policy import RawAdapter, tiny_policy
from torch import multiprocessing

from mmgrpo import distributed
from mmgrpo.optimizer import MMGRPO
from mmgrpo.settings import GRPOSettings, SamplingSettings
from mmgrpo.trainer import RowTrainer

EXAMPLES = [dspy.Example(q=f"question {place}").with_inputs("q") for place in range(3)]


class Pair(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = dspy.Predict("q -> t"), dspy.Predict("q -> t")

    def forward(self, q):
        first = self.a(q=q)
        return dspy.Prediction(t=first.t + self.b(q=first.t).t)


def noise(example, prediction, trace=None):
    return sum(map(ord, prediction.t)) % 11 / 10


def train(folder: Path, changes: dict) -> dict:
    """Two updates: micro-batches and gradients of each, the log, and the weights that come back."""
    packs, gradients = [], []
    honest = RowTrainer._backward

    def backward(trainer, model, mine, metrics):
        loss = honest(trainer, model, mine, metrics)
        packs.append(len(mine))
        gradients.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )
        return loss

    settings = {
        "steps": 2, "inputs": 3, "rollouts": 3, "group_size": 3, "learning_rate": 1e-3, "warmup_steps": 0, "beta": 0.1,
        "validate_every": 1, "token_budget": 300, "scale": "batch", "importance_cap": 2.0,
    }  # fmt: skip
    how = MMGRPO(
        noise, settings=GRPOSettings(**settings | changes), sampling=SamplingSettings(temperature=1.0), folder=folder
    )
    policy = tiny_policy()
    RowTrainer._backward = backward
    try:
        with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
            log = how.compile(Pair(), trainset=EXAMPLES, valset=EXAMPLES).training_log
    finally:
        RowTrainer._backward = honest
    weights = {name: value.clone() for name, value in policy.trainable().state_dict().items() if "lora" in name}
    found = {"packs": packs, "gradients": gradients, "weights": weights}
    return found | {"curve": log.curve, "validation": log.validation}


def one_of_several(rank: int, size: int, port: int, folder: Path, changes: dict) -> None:
    """The main function of a process, set up as `accelerate launch` sets it up."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.save(train(folder / "run", changes), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo")
@pytest.mark.parametrize("changes", [{}, {"adapters": "per_module", "iterations": 2, "steps": 1}], ids=str)
def test_two_processes_have_the_gradients_of_one(tmp_path, changes):
    alone = train(tmp_path / "alone", changes)
    multiprocessing.spawn(one_of_several, (2, free_port(), tmp_path, changes), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert len(alone["gradients"]) == 2 and any(value.norm() > 1e-3 for value in alone["gradients"][0].values())
    assert min(first["packs"] + second["packs"]) > 0
    assert [one + other for one, other in zip(first["packs"], second["packs"], strict=True)] == alone["packs"]
    for ours, theirs in zip(first["gradients"], alone["gradients"], strict=True):
        assert ours.keys() == theirs.keys()
        whole = torch.cat([value.flatten() for value in theirs.values()])
        ours = torch.cat([ours[name].flatten() for name in theirs])
        assert (ours - whole).norm() < 1e-4 * whole.norm()
    for entry, expected in zip(first["curve"], alone["curve"], strict=True):
        for name in expected.keys() - {"seconds_rollout", "train_runtime", "step_time"}:
            assert entry[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
    assert first["validation"] == second["validation"] == alone["validation"]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


def test_shares_make_up_the_whole(monkeypatch):
    for count in (0, 1, 2, 5, 12):
        parts = []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank_and_size", lambda rank=rank: (rank, 3))
            parts += distributed.share(list(range(count)))
        assert parts == list(range(count))


def test_one_process_works_on_everything():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    distributed.sum_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]
    assert distributed.share([1, 2, 3]) == distributed.all_of([1, 2, 3]) == [1, 2, 3]

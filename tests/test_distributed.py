"""Two processes that train together do what one does alone."""

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dspy
import pytest
import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from tiny_policy import RawAdapter, tiny_model, tiny_policy, tokenizer
from torch import multiprocessing
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmgrpo import distributed
from mmgrpo.errors import UserError
from mmgrpo.optimizer import MMGRPO
from mmgrpo.policy.adapter_folders import AdapterFolders
from mmgrpo.policy.sampler import Completion, Sampler, SamplingRequest, TreeSampler
from mmgrpo.settings import GRPOSettings, SamplingSettings
from mmgrpo.trainer import RowTrainer, check_launch

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


class Served(Sampler):
    """Has weights of its own and reads adapters from folders, as vLLM's servers; its log-probabilities are a bit off."""

    def __init__(self):
        self.inner = TreeSampler(tiny_model(), [2], 16, tiny_model(), tokenizer().decode)
        self.adapters = AdapterFolders()

    def follow(self, policy) -> None:
        self.adapters.write(policy)

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        folders = [self.adapters.of(request) for request in requests]
        known = [
            replace(request, weights=None if found is None else found[1])
            for request, found in zip(requests, folders, strict=True)
        ]
        return [
            replace(one, logprobs=tuple(x - sum(one.ids) % 11 / 10 for x in one.logprobs))
            for one in self.inner.generate(known)
        ]


def train(folder: Path, changes: dict, sampler: Sampler | None = None) -> dict:
    """Two updates: micro-batches and gradients of each, the log, and the weights that come back."""
    packs, gradients, held = [], [], []
    honest = RowTrainer._backward

    def backward(trainer, model, mine, metrics):
        loss = honest(trainer, model, mine, metrics)
        frozen = [weight for name, weight in model.named_parameters() if "lora_" not in name]
        held.append(sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in frozen))
        packs.append(len(mine))
        gradients.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )
        return loss

    # Adam's first update turns even a gradient of pure rounding into a step of the learning rate: at 1e-3 a draw of the
    # second step tipped on one processor and not on another.
    settings = {
        "steps": 2, "inputs": 3, "rollouts": 3, "group_size": 3, "learning_rate": 1e-5, "warmup_steps": 0, "beta": 0.1,
        "validate_every": 1, "token_budget": 300, "scale": "batch", "importance_cap": 2.0,
    }  # fmt: skip
    how = MMGRPO(
        noise, settings=GRPOSettings(**settings | changes), sampling=SamplingSettings(temperature=1.0), folder=folder
    )
    policy = tiny_policy(sampler=sampler)
    RowTrainer._backward = backward
    try:
        with dspy.context(lm=policy.lm(), adapter=RawAdapter()):
            log = how.compile(Pair(), trainset=EXAMPLES, valset=EXAMPLES).training_log
    finally:
        RowTrainer._backward = honest
    weights = {name: value.clone() for name, value in policy.trainable().state_dict().items() if "lora" in name}
    found = {"packs": packs, "gradients": gradients, "held": held, "weights": weights}
    return found | {"curve": log.curve, "validation": log.validation}


def one_of_several(rank: int, size: int, port: int, folder: Path, changes: dict, launched: dict) -> None:
    """The main function of a process, set up as `accelerate launch` sets it up, with the variables `launched` more."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    } | launched  # fmt: skip
    torch.set_num_threads(1)
    if launched:
        take_processors_for_gpus()
    sampler = Served() if launched else None
    torch.save(train(folder / "run", changes, sampler), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def take_processors_for_gpus() -> None:
    """accelerate shards on GPUs alone: it overlooks FSDP where processes have none."""
    honest = AcceleratorState.__init__

    def init(state, *args, **kwargs):
        if not AcceleratorState._shared_state:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        honest(state, *args, **kwargs)

    AcceleratorState.__init__ = init


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def agree(ours: dict, theirs: dict, *, updates: slice, within: float) -> None:
    """Whether gradients and log of `updates` are the same."""
    for one, other in zip(ours["gradients"], theirs["gradients"][updates], strict=True):
        assert one.keys() == other.keys()
        whole = torch.cat([value.flatten() for value in other.values()])
        assert (torch.cat([one[name].flatten() for name in other]) - whole).norm() < within * whole.norm()
    for entry, expected in zip(ours["curve"][updates], theirs["curve"][updates], strict=True):
        for name in expected.keys() - {"seconds_rollout", "train_runtime", "step_time"}:
            assert entry[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
    assert ours["validation"] == theirs["validation"]


def together(folder: Path, changes: dict, launched: dict) -> tuple[dict, dict]:
    """What two processes found."""
    multiprocessing.spawn(one_of_several, (2, free_port(), folder, changes, launched), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    return first, second


several = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo")
on_processors = pytest.mark.skipif(torch.cuda.is_available(), reason="torch would shard onto the GPUs")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
CHANGES = [{}, {"adapters": "per_module", "iterations": 2, "steps": 1}]


@pytest.mark.slow
@several
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_two_processes_have_the_gradients_of_one(tmp_path, changes):
    alone = train(tmp_path / "alone", changes)
    first, second = together(tmp_path, changes, {})
    assert len(alone["gradients"]) == 2 and any(value.norm() > 1e-3 for value in alone["gradients"][0].values())
    assert min(first["packs"] + second["packs"]) > 0
    assert [one + other for one, other in zip(first["packs"], second["packs"], strict=True)] == alone["packs"]
    for found in (first, second):
        agree(found, alone, updates=slice(None), within=1e-4)


@pytest.mark.slow
@several
@on_processors
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_two_processes_that_share_the_frozen_weights_have_the_gradients_of_one(tmp_path, changes):
    changes = changes | {"token_budget": 400}
    alone = train(tmp_path / "alone", changes, Served())
    first, second = together(tmp_path, changes, FSDP)
    assert alone["packs"] == [3, 3]  # so that one process has a pass to make without a share in it
    for found in (first, second):
        assert found["held"] == [count // 2 for count in alone["held"]]
        assert found["packs"] == [2, 2]
        agree(found, alone, updates=slice(None), within=1e-5)


@pytest.mark.slow
@several
@on_processors
def test_processes_that_share_the_frozen_weights_go_on_from_a_checkpoint(tmp_path):
    changes = {"save_every": 1}
    before, _ = together(tmp_path, changes, FSDP)
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    again, _ = together(tmp_path, changes, FSDP)
    assert len(again["gradients"]) == 1 and len(again["curve"]) == 2
    agree(again, before, updates=slice(1, None), within=1e-7)
    assert all(torch.equal(again["weights"][name], before["weights"][name]) for name in before["weights"])


def test_shares_make_up_the_whole(monkeypatch):
    for count in (0, 1, 2, 5, 12):
        parts = []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank_and_size", lambda rank=rank: (rank, 3))
            parts += distributed.share(list(range(count)))
        assert parts == list(range(count))


def test_shares_are_equally_long_with_a_spare(monkeypatch):
    for count, expected in {0: [[], [], []], 2: [[-1], [0], [1]], 4: [[0, -1], [1, -1], [2, 3]]}.items():
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank_and_size", lambda rank=rank: (rank, 3))
            assert distributed.share(list(range(count)), spare=-1) == expected[rank]


def launched(kind: DistributedType = DistributedType.FSDP, *, version: int = 2, efficient: bool = False):
    """What the checks read of an accelerator."""
    plugin = SimpleNamespace(cpu_ram_efficient_loading=efficient)
    return SimpleNamespace(distributed_type=kind, is_fsdp2=version == 2, state=SimpleNamespace(fsdp_plugin=plugin))


@pytest.mark.parametrize(
    ("accelerator", "sentence"),
    [
        (launched(DistributedType.DEEPSPEED), "DeepSpeed is not supported.*--use_fsdp"),
        (launched(version=1), "--fsdp_version 2"),
        (launched(efficient=True), "--fsdp_cpu_ram_efficient_loading false"),
    ],
)
def test_launches_that_are_not_served_are_refused_in_a_sentence(accelerator, sentence):
    with pytest.raises(UserError, match=sentence):
        check_launch(accelerator, tiny_policy(sampler=Served()))


def test_policies_that_cannot_be_sharded_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="set `sampler: vllm`"):
        check_launch(launched(), tiny_policy())
    policy = tiny_policy(sampler=Served())
    check_launch(launched(), policy)
    layer = policy.trainable().get_base_model().model.layers[0]
    layer.__class__ = type("Sharded", (FSDPModule, type(layer)), {})  # as `fully_shard` marks it
    with pytest.raises(UserError, match="load the policy anew"):
        check_launch(launched(), policy)


def test_one_process_works_on_everything():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    distributed.sum_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]
    assert distributed.share([1, 2, 3]) == distributed.all_of([1, 2, 3]) == [1, 2, 3]

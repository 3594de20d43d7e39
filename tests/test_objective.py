"""The loss, its gradient and its weights: by hand, against plain Python, and against TRL's own."""

import copy

import numpy as np
import pytest
import torch
from factories import call, random_ids, runs, tiny_llama, with_lora

from mmgrpo.grouping import module_groups, trajectory_groups
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.objective import policy_loss, rows_of
from mmgrpo.trajectory import Trajectory
from mmgrpo.tree_attention import use_tree_attention

CLIP = {"epsilon": 0.2, "epsilon_high": 1.5}


def by_module(trajectories, padding="ragged"):
    return module_groups(trajectories, padding=padding, size=99, scale="group", rng=None).groups


def by_trajectory(trajectories):
    return trajectory_groups(trajectories, size=99, scale="group").groups


# One token of advantage 1 or -1 and weight 1, its ratio to the old policy given.
@pytest.mark.parametrize(
    ("objective", "ratio", "advantage", "loss", "slope", "clipped"),
    [
        ("grpo", 1.0, 1.0, -1.0, -1.0, 0),
        ("grpo", 1.5, 1.0, -1.2, 0.0, 1),  # raised enough: no further push
        ("grpo", 0.5, 1.0, -0.5, -0.5, 0),  # moved the wrong way: not clipped
        ("grpo", 0.5, -1.0, 0.8, 0.0, 1),  # lowered enough
        ("grpo", 1.5, -1.0, 1.5, 1.5, 0),
        ("cispo", 1.0, 1.0, 1.0, -1.0, 0),  # log p is -1
        ("cispo", 2.0, 1.0, 1.5, -1.5, 1),  # the weight is capped, the gradient stays
        ("cispo", 2.0, -1.0, -1.5, 1.5, 1),
        ("cispo", 0.1, 1.0, 0.1, -0.1, 0),
    ],
)
def test_clipping_by_hand(objective, ratio, advantage, loss, slope, clipped):
    logprobs = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    old = logprobs.detach() - np.log(ratio)
    one = torch.ones(1, dtype=torch.float64)
    terms = policy_loss(logprobs, old, None, advantage * one, one, objective=objective, beta=0.0, **CLIP)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(loss)
    assert logprobs.grad.item() == pytest.approx(slope)
    assert terms.clipped.item() == clipped


def test_kl_by_hand():
    logprobs = torch.tensor([np.log(0.5), np.log(0.2)], requires_grad=True)
    reference = torch.tensor([np.log(0.25), np.log(0.2)])  # k3: 0.5 - log 0.5 - 1 = 0.1931, and 0
    weights = torch.tensor([0.5, 0.5])
    terms = policy_loss(
        logprobs, logprobs.detach(), reference, torch.zeros(2), weights, objective="grpo", beta=0.1, **CLIP
    )
    terms.loss.backward()
    assert terms.kl.item() == pytest.approx(0.5 * 0.1931, abs=1e-4)
    assert terms.loss.item() == pytest.approx(0.1 * terms.kl.item())
    assert logprobs.grad.tolist() == pytest.approx([0.1 * 0.5 * (1 - 0.5), 0.0], abs=1e-7)


def token_by_token(logprobs, old, ref, advantages, weights, objective, epsilon, epsilon_high, beta):
    """Loss and derivative of each token in plain Python, from the formulas of the paper."""
    loss, slopes = 0.0, []
    for p, o, r, a, w in zip(logprobs, old, ref, advantages, weights, strict=True):
        ratio = np.exp(p - o)
        if objective == "grpo":
            low, high = 1 - epsilon, 1 + epsilon
            idle = (a > 0 and ratio > high) or (a < 0 and ratio < low)
            value, slope = (min(max(ratio, low), high) * a, 0.0) if idle else (ratio * a, ratio * a)
        else:
            value, slope = min(ratio, epsilon_high) * a * p, min(ratio, epsilon_high) * a
        loss -= w * (value - beta * (np.exp(r - p) - (r - p) - 1))
        slopes.append(-w * (slope - beta * (1 - np.exp(r - p))))
    return loss, np.array(slopes)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("objective", ["grpo", "cispo"])
def test_loss_and_gradient_equal_the_formulas_token_by_token(objective, beta, dtype, tolerance):
    random = np.random.default_rng(0)
    logprobs = -random.exponential(2.0, 200)
    old, ref = (logprobs + random.normal(0, 0.4, 200) for _ in range(2))
    advantages, weights = random.normal(0, 1, 200), random.random(200) / 100
    expected, slopes = token_by_token(logprobs, old, ref, advantages, weights, objective, beta=beta, **CLIP)
    tensors = [torch.tensor(values, dtype=dtype) for values in (logprobs, old, ref, advantages, weights)]
    tensors[0].requires_grad_()
    terms = policy_loss(*tensors, objective=objective, beta=beta, **CLIP)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(expected, rel=tolerance)
    assert np.linalg.norm(tensors[0].grad.numpy() - slopes) < tolerance * np.linalg.norm(slopes)
    assert 0 < terms.clipped < weights.sum()  # both branches were met


@pytest.mark.parametrize("objective", ["grpo", "cispo"])
def test_truncated_importance_weights_equal_numpy(objective):
    random = np.random.default_rng(1)
    logprobs = -random.exponential(2.0, 200)
    old, ref, sampled = (logprobs + random.normal(0, 0.4, 200) for _ in range(3))
    advantages, weights = random.normal(0, 1, 200), random.random(200) / 100
    ratio = np.exp(old - sampled)
    scaled = advantages * np.minimum(ratio, 1.3)  # objectives are linear in the advantage; the KL term is not weighted
    expected, slopes = token_by_token(logprobs, old, ref, scaled, weights, objective, beta=0.04, **CLIP)
    tensors = [torch.tensor(values) for values in (logprobs, old, ref, advantages, weights, sampled)]
    tensors[0].requires_grad_()
    terms = policy_loss(*tensors, objective=objective, beta=0.04, importance_cap=1.3, **CLIP)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(expected, rel=1e-9)
    assert np.linalg.norm(tensors[0].grad.numpy() - slopes) < 1e-9 * np.linalg.norm(slopes)
    assert terms.truncated.item() == pytest.approx(weights[ratio > 1.3].sum())
    assert 0 < terms.truncated < weights.sum()


def test_without_a_cap_the_samplers_numbers_do_not_matter():
    logprobs, far = torch.tensor([-1.0, -2.0]), torch.tensor([-9.0, -9.0])
    ones = torch.ones(2)
    terms = policy_loss(logprobs, logprobs, None, ones, ones, far, objective="grpo", beta=0.0, **CLIP)
    assert (terms.loss.item(), terms.truncated.item()) == (-2.0, 0.0)


def total_weight(rows):
    return sum(len(row.completion_ids) * row.token_weight for row in rows)


def test_token_weights_by_hand():
    short, long = call("a", completion=(5,)), call("b", completion=(6, 7, 8))
    both = [Trajectory("x", rollout, (short, long), reward, "completed") for rollout, reward in enumerate((0.0, 1.0))]
    # Module level, two groups of two calls: 1/4 a call. Trajectory level, one group of two runs: 1/2 a run of 4 tokens.
    assert [row.token_weight for row in rows_of(by_module(both))] == pytest.approx([1 / 4, 1 / 4, 1 / 12, 1 / 12])
    assert [row.token_weight for row in rows_of(by_trajectory(both))] == pytest.approx([1 / 8] * 4)


UNEVEN = runs(("abb", 1.0), ("a", 0.0), ("abbb", 0.5)) + runs(("ab", 1.0), ("ab", 0.0), example="y")


@pytest.mark.parametrize("groups", [by_module(UNEVEN), by_trajectory(UNEVEN)], ids=["module", "trajectory"])
def test_weights_of_a_step_sum_to_one(groups):
    assert total_weight(rows_of(groups)) == pytest.approx(1)


def test_call_without_tokens_gives_no_row():
    empty = call("a", completion=())
    mute = [
        Trajectory("x", rollout, (empty, call("b")), reward, "completed") for rollout, reward in enumerate((0.0, 1.0))
    ]
    assert [row.module for row in rows_of(by_trajectory(mute))] == ["b", "b"]


def test_greedy_call_is_scored_at_temperature_one():
    greedy = [Trajectory("x", i, (call(temperature=0.0),), float(i), "completed") for i in range(2)]
    assert {row.temperature for row in rows_of(by_module(greedy))} == {1.0}


def sampled_runs(modules, lengths, examples="xy", rollouts=3):
    """Runs that call each module once, with random tokens; `lengths` holds that of each module's completion."""
    trajectories = []
    for example in examples:
        for rollout in range(rollouts):
            calls = [
                call(module, prompt=random_ids(4, ord(example) + place), temperature=0.7,
                     completion=random_ids(length, 1000 * ord(example) + 10 * rollout + place))
                for place, (module, length) in enumerate(zip(modules, lengths, strict=True))
            ]  # fmt: skip
            trajectories.append(Trajectory(example, rollout, tuple(calls), rollout**2 / 4, "completed"))
    return trajectories


def lora_gradient(model, rows):
    lengths = torch.tensor([len(row.completion_ids) for row in rows])
    per_row = torch.tensor([[row.advantage, row.token_weight] for row in rows])
    advantages, weights = per_row.repeat_interleave(lengths, dim=0).T
    model.zero_grad()
    logprobs = completion_logprobs(model, rows)
    policy_loss(
        logprobs, logprobs.detach(), None, advantages, weights, objective="grpo", beta=0.0, **CLIP
    ).loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


@pytest.mark.parametrize(("lengths", "equal"), [((5, 5), True), ((2, 9), False)])
def test_module_and_trajectory_gradients_are_equal_where_calls_have_one_length(lengths, equal):
    # Two modules make two groups of calls |o| long out of one of runs 2|o| long: 1/(2 G |o|) both times.
    model = with_lora(tiny_llama())
    use_tree_attention(model.get_base_model())
    sampled = sampled_runs("ab", lengths)
    one, other = (lora_gradient(model, rows_of(groups)) for groups in (by_module(sampled), by_trajectory(sampled)))
    difference = ((one - other).norm() / one.norm()).item()
    assert difference < 1e-5 if equal else difference > 0.05


def tiny_trainer(folder, **arguments):
    """TRL's own trainer of a tiny model with LoRA, never trained."""
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(97)}, "t0"))
    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        per_device_train_batch_size=4, num_generations=2, temperature=0.7,
        use_bias_correction_kl=False, **arguments,  # on by default; the paper's KL term has no importance weight
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=tiny_llama(), reward_funcs=lambda **_: [], args=args, train_dataset=Dataset.from_dict({"step": [0] * 8}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t1"),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_inputs(rows, old, reference):
    """What TRL's loss takes: prompts padded on the left, completions and their log-probabilities on the right."""

    def padded(lists, side, dtype):
        width = max(len(values) for values in lists)
        out, mask = torch.zeros(len(lists), width, dtype=dtype), torch.zeros(len(lists), width, dtype=torch.long)
        for place, values in enumerate(lists):
            span = slice(width - len(values), None) if side == "left" else slice(len(values))
            out[place, span], mask[place, span] = torch.as_tensor(values, dtype=dtype), 1
        return out, mask

    lengths = [len(row.completion_ids) for row in rows]
    prompt_ids, prompt_mask = padded([row.prompt_ids for row in rows], "left", torch.long)
    completion_ids, completion_mask = padded([row.completion_ids for row in rows], "right", torch.long)
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
        "completion_ids": completion_ids, "completion_mask": completion_mask,
        "advantages": torch.tensor([row.advantage for row in rows]),
        "old_per_token_logps": padded(old.split(lengths), "right", torch.float32)[0],
        "ref_per_token_logps": padded(reference.split(lengths), "right", torch.float32)[0],
        "num_items_in_batch": completion_mask.sum(),
    }  # fmt: skip


# TRL's CISPO divides by the tokens of the batch, ours by each call's length: the same where all have one length.
@pytest.mark.parametrize(("objective", "lengths"), [("grpo", (3, 7, 1, 5)), ("cispo", (4, 4, 4, 4))])
def test_one_module_gives_the_loss_and_gradient_of_trl(tmp_path, objective, lengths):
    caps = {"epsilon": 0.2, "epsilon_high": 0.2 if objective == "grpo" else 1.1}
    trainer = tiny_trainer(tmp_path, loss_type=objective, beta=0.04, **caps)
    model = trainer.model
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1)
    sampled = [
        Trajectory(example, rollout, (call("a", prompt=random_ids(3 + rollout, place), temperature=0.7,
                                           completion=random_ids(length, 50 * (place + 1) + rollout)),), rollout / 3, "completed")
        for place, example in enumerate("xy") for rollout, length in enumerate(lengths)
    ]  # fmt: skip
    rows = rows_of(by_module(sampled))

    use_tree_attention(model.get_base_model())
    now = completion_logprobs(model, rows)
    old, reference = (
        now.detach() + 0.3 * torch.randn(now.shape, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    counts = torch.tensor([len(row.completion_ids) for row in rows])
    advantages, weights = (
        torch.tensor([getattr(row, name) for row in rows]).repeat_interleave(counts)
        for name in ("advantage", "token_weight")
    )
    ours = policy_loss(now, old, reference, advantages, weights, objective=objective, beta=0.04, **caps)
    ours.loss.backward()
    gradient = {name: copy.deepcopy(weight.grad) for name, weight in model.named_parameters() if weight.requires_grad}
    assert ours.clipped > 0

    model.zero_grad()
    theirs = trainer.compute_loss(model, trl_inputs(rows, old, reference))
    theirs.backward()
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm(), name

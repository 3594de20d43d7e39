"""What a backward pass on a CPU computes again, and that gradients are the same."""

from collections import Counter

import pytest
import torch
from factories import random_ids, row, tiny_llama, tiny_qwen3, with_lora
from torch.utils._python_dispatch import TorchDispatchMode

from mmgrpo.logprobs import completion_logprobs
from mmgrpo.recomputation import KEPT, keep_products_only
from mmgrpo.tree_attention import use_tree_attention

SILU = torch.ops.aten.silu.default


class Counted(TorchDispatchMode):
    """Counts the operators that run below it."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls[operator] += 1
        return operator(*args, **(kwargs or {}))


def backward(make, *, recompute):
    """The gradient of some rows' log-probabilities, and the operators of its backward pass."""
    model = with_lora(make(0))
    assert use_tree_attention(model.get_base_model())
    if recompute:
        keep_products_only(model.get_base_model())
    trunk = random_ids(20, 0)
    rows = [row(trunk + random_ids(3, seed), random_ids(9, 10 + seed)) for seed in range(4)]
    total = completion_logprobs(model.train(), rows).sum()
    with Counted() as counted:
        total.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad]), counted.calls


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3])
def test_cheap_operators_are_computed_again_and_products_are_not(make):
    expected, plain = backward(make, recompute=False)
    found, again = backward(make, recompute=True)
    assert torch.equal(found, expected)
    assert (plain[SILU], again[SILU]) == (0, 2)  # once a layer
    assert [again[operator] for operator in KEPT] == [plain[operator] for operator in KEPT]

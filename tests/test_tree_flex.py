"""FlexAttention sees the tree and nothing else, compiles once for all sizes, and says where it can't run."""

import tracemalloc
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from factories import PROPERTY, random_ids, row, tiny_qwen3, with_lora
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as flex
from torch.utils._python_dispatch import TorchDispatchMode

from mmgrpo import tree_flex
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.prefix_tree import build
from mmgrpo.tree_attention import use_tree_attention
from mmgrpo.tree_flex import TILE, TreeFlex, block_mask

CPU = torch.device("cpu")
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8)


def listed(counts, indices):
    """[T, T] which tiles a kernel visits."""
    chosen = np.zeros(indices.shape[2:], bool)
    for band, count, order in zip(chosen, counts[0, 0], indices[0, 0], strict=True):
        band[order[:count]] = True
    return chosen


@PROPERTY
@given(ROWS, st.integers(1, 9))
def test_kernel_that_follows_the_block_mask_sees_the_ancestors(rows, size):
    tree = build(rows)
    tree = tree.padded(-(-len(tree) // size) * size)
    mask = block_mask(tree, size, CPU)
    nodes = torch.arange(len(tree))
    pairs = mask.mask_mod(None, None, nodes[:, None], nodes[None, :]).numpy()
    part = listed(mask.kv_num_blocks, mask.kv_indices)
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    tile = np.ones((size, size), bool)
    seen = (np.kron(part, tile) & pairs) | np.kron(whole, tile)
    assert not (part & whole).any()
    assert seen.tolist() == tree.ancestors(nodes.numpy(), nodes.numpy()).tolist()
    # The gradient's kernel goes the other way, from keys to queries.
    assert listed(mask.q_num_blocks, mask.q_indices).tolist() == part.T.tolist()
    assert listed(mask.full_q_num_blocks, mask.full_q_indices).tolist() == whole.T.tolist()


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **keywords or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_block_mask_never_takes_the_memory_of_all_pairs():
    trunk = random_ids(8192, 0)
    tree = build([(*trunk, *random_ids(1024, seed)) for seed in range(8)])
    tiles = -(-len(tree) // TILE)
    nodes = tiles * TILE
    assert nodes > 16000
    tracemalloc.start()
    with Largest() as tensors:
        TreeFlex(tree, CPU, flex.flex_attention)
    peak = tracemalloc.get_traced_memory()[1]  # numpy's; PyTorch has its own memory
    tracemalloc.stop()
    assert tensors.elements <= max(nodes, tiles * (tiles + 1))
    assert peak < nodes**2 / 100


@pytest.fixture
def compilations(monkeypatch):
    """Counts compilations of the kernel, carried out as far as they are the same for all devices."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)  # refuses gradients on a CPU
    tree_flex.compiled.cache_clear()
    tree_flex.runs.cache_clear()
    yield counter
    tree_flex.compiled.cache_clear()
    tree_flex.runs.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def train(compilations):
    """Takes the gradient of three rows of a model whose trial was successful; returns the nodes of the padded tree."""
    assert tree_flex.runs(CPU, torch.float32, 4, 2, 16)
    model = with_lora(tiny_qwen3())
    use_tree_attention(model.get_base_model())

    def train(length, scaling=16**-0.5):
        memories = []

        def memory_over(tree, base):
            memories.append(TreeFlex(tree, CPU, tree_flex.compiled()))
            return memories[0]

        for layer in model.get_base_model().model.layers:
            layer.self_attn.scaling = scaling
        rows = [row(random_ids(length, 0), random_ids(30, seed)) for seed in range(3)]
        completion_logprobs(model, rows, memory_over).sum().backward()
        return len(memories[0].tree)

    return train


def test_trees_of_any_size_need_no_compilation_after_the_first(train, compilations):
    assert compilations.frame_count == 2  # by the trial: for one size, and for all others
    assert train(200) == 384
    first = compilations.frame_count
    assert first <= 3  # once more where the model lays its queries out otherwise
    assert [train(length) for length in (10, 800, 600, 500, 300, 90)] == [256, 896, 768, 640, 512, 256]
    assert compilations.frame_count == first


def test_scaling_is_a_constant_of_the_kernel(train, compilations):
    for scaling in (1.0, 0.5):
        train(200, scaling)
        train(300, scaling)
    assert compilations.frame_count == 2 + 2


def test_device_that_cannot_run_the_kernel_is_told_of_once():
    tree_flex.runs.cache_clear()
    with pytest.warns(UserWarning, match="FlexAttention does not run on cpu for 4 heads of 16 in torch.float32 .*SDPA"):
        assert not tree_flex.runs(CPU, torch.float32, 4, 2, 16)
    with warnings.catch_warnings(action="error"):
        assert not tree_flex.runs(CPU, torch.float32, 4, 2, 16)

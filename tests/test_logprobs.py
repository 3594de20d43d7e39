"""Log-probabilities and LoRA gradients of a whole tree of rows are those of each row alone."""

import copy
import warnings

import numpy as np
import pytest
import torch
from factories import random_ids, row, tiny_llama, tiny_mistral, tiny_qwen3, with_lora
from torch.nn.attention import flex_attention as flex

from mmgrpo import prefix_tree, tree_attention, tree_blocks
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.tree_attention import use_tree_attention
from mmgrpo.tree_blocks import TreeBlocks
from mmgrpo.tree_flex import TreeFlex

MODELS = {"llama": tiny_llama, "qwen3": tiny_qwen3}


@pytest.fixture(params=["blocks", "flex"])
def memory_over(request, monkeypatch):
    """Both ways to attend to a tree: SDPA in blocks, and FlexAttention's uncompiled form."""
    if request.param == "blocks":
        return tree_attention.over
    # That form has gradients on every device; on a CPU, where the compiled one lacks them, the function refuses both.
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    return lambda tree, model: TreeFlex(tree, model.device, flex.flex_attention)


def tangled_rows():
    """Uneven prompts and completions, a duplicate, a completion inside another's prompt, several temperatures."""
    shared, other = random_ids(12, 0), random_ids(5, 1)
    answer = random_ids(6, 2)
    return [
        row(shared, answer),
        row(shared, answer),  # the same row twice
        row(shared, answer, 0.6),  # and at another temperature
        row(shared, answer[:3] + random_ids(4, 3)),  # parts in the middle of its completion
        row(shared + answer + random_ids(3, 4), random_ids(5, 5), 0.6),  # a second call whose prompt quotes the first
        row(shared[:4] + other, random_ids(1, 6), 1.3),
        row(other, random_ids(8, 7)),
        row(other[:1], random_ids(3, 8)),  # a prompt of one token
    ]


def alone(model, rows):
    """The textbook way: one plain forward pass a row, all logits, log-softmax, pick."""
    out = []
    for one in rows:
        ids = torch.tensor([[*one.prompt_ids, *one.completion_ids]], device=model.device)
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float() / one.temperature, dim=-1)
        out.append(logprobs.gather(1, ids[0, 1:, None])[len(one.prompt_ids) - 1 :, 0])
    return torch.cat(out)


def pair(make, seed=0):
    """The same LoRA policy twice: over a model as transformers makes it, and over one with tree attention."""
    plain, tree = with_lora(make(seed)), with_lora(make(seed))
    assert use_tree_attention(tree.get_base_model())
    return plain, tree


def gradient(model, logprobs):
    """LoRA gradient of a sum of the log-probabilities with random signs."""
    model.zero_grad()
    signs = torch.from_numpy(np.random.default_rng(0).normal(size=len(logprobs))).to(logprobs)
    (signs * logprobs).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


def assert_same(plain, tree, rows, memory_over=tree_attention.over, tolerance=1e-5):
    expected, found = alone(plain, rows), completion_logprobs(tree, rows, memory_over)
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() < tolerance
    one, other = gradient(plain, expected), gradient(tree, found)
    assert ((one - other).norm() / one.norm()).item() < tolerance


def long_rows():
    """Rows that share up to 300 tokens, 576 nodes together: more than two blocks, and several tiles."""
    trunk = random_ids(300, 0)
    return [row(trunk, random_ids(120, 1)), row(trunk[:200], random_ids(150, 2), 0.6), row(trunk, random_ids(9, 3))]


@pytest.mark.parametrize("name", MODELS)
def test_tree_gives_the_numbers_of_each_row_alone(name, memory_over):
    assert_same(*pair(MODELS[name]), tangled_rows(), memory_over)


@pytest.mark.parametrize("size", [1, 5])
def test_size_of_the_attention_blocks_changes_nothing(monkeypatch, size):
    whole = prefix_tree.PrefixTree.blocks
    monkeypatch.setattr(prefix_tree.PrefixTree, "blocks", lambda tree: whole(tree, size))
    assert_same(*pair(tiny_llama), tangled_rows())


@pytest.mark.parametrize(("threads", "heads", "cuts"), [(1, 1, 1), (2, 1, 2), (3, 1, 1), (4, 2, 2)])
def test_queries_cut_to_share_out_over_threads_change_nothing(monkeypatch, threads, heads, cuts):
    seen, attention = set(), tree_blocks.scaled_dot_product_attention

    def watched(query, *others, **options):
        seen.add(len(query))
        return attention(query, *others, **options)

    monkeypatch.setattr(tree_blocks, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_same(*pair(lambda seed: tiny_llama(seed, num_key_value_heads=heads)), tangled_rows())
    assert seen == {cuts}  # 188 queries of a head can't be cut in three


def test_rows_longer_than_a_block_see_across_blocks(memory_over):
    rows = long_rows()
    assert sum(len(one.completion_ids) for one in rows) + 300 > 2 * prefix_tree.BLOCK
    plain, tree = (model.double() for model in pair(tiny_llama))  # float32 rounds by more than the tolerance
    assert_same(plain, tree, rows, memory_over)


def test_attention_is_scaled_as_the_model_says(memory_over):
    plain, tree = pair(tiny_llama)
    for model in (plain, tree):
        for layer in model.get_base_model().model.layers:
            layer.self_attn.scaling = 1.0  # instead of one over the root of the head size
    assert_same(plain, tree, tangled_rows(), memory_over)


def test_single_row_without_anything_shared(memory_over):
    assert_same(*pair(tiny_qwen3), [row(random_ids(9, 0), random_ids(4, 1), 0.7)], memory_over)


def test_gradient_checkpointing_changes_nothing(memory_over):
    plain, tree = pair(tiny_llama)
    tree.enable_input_require_grads()
    tree.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tree.train()
    passes = []
    tree.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    assert_same(plain, tree, tangled_rows(), memory_over)
    assert len(passes) == 2  # forward, and once more for the gradient


@pytest.mark.parametrize("name", MODELS)
def test_tree_under_bf16_autocast_errs_no_more_than_rows_alone(name, memory_over):
    plain, tree = pair(MODELS[name])
    rows = tangled_rows()
    exact = alone(plain, rows)
    exact_gradient = gradient(plain, exact)

    def errors(model, compute, *more):
        with torch.autocast("cpu", torch.bfloat16):
            rounded = compute(model, rows, *more)
        difference = gradient(model, rounded) - exact_gradient
        return (rounded - exact).abs().mean().item(), (difference.norm() / exact_gradient.norm()).item()

    assert np.all(np.array(errors(tree, completion_logprobs, memory_over)) < 1.2 * np.array(errors(plain, alone)))


def test_cpu_attends_in_blocks_without_trying_anything_else():
    with warnings.catch_warnings(action="error"):
        assert isinstance(tree_attention.over(prefix_tree.build([[1, 2]]), tiny_llama()), TreeBlocks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles FlexAttention for a CUDA GPU, and there is none")
def test_compiled_kernel_gives_the_numbers_of_each_row_alone_on_a_gpu():
    plain, tree = (model.cuda() for model in pair(tiny_qwen3))
    tree.enable_input_require_grads()
    tree.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tree.train()
    used = []

    def memory_over(*arguments):
        used.append(tree_attention.over(*arguments))
        return used[-1]

    for rows in (tangled_rows(), long_rows(), long_rows()[:1]):
        assert_same(plain, tree, rows, memory_over, tolerance=1e-4)
    assert [type(memory) for memory in used] == [TreeFlex] * 3
    assert len({len(memory.tree) for memory in used}) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks a CUDA GPU for heads of 8, and there is none")
def test_gpu_falls_back_to_blocks_where_heads_are_too_small_for_the_kernel():
    plain, tree = (model.cuda() for model in pair(tiny_llama))
    with pytest.warns(UserWarning, match="FlexAttention does not run on cuda:0 for 4 heads of 8"):
        memory = tree_attention.over(prefix_tree.build([[1, 2]]), tree.get_base_model())
    assert isinstance(memory, TreeBlocks)
    assert_same(plain, tree, tangled_rows(), tolerance=1e-4)


def test_order_of_rows_orders_the_numbers_only():
    _, tree = pair(tiny_llama)
    rows = tangled_rows()
    lengths = [len(one.completion_ids) for one in rows]
    forward = completion_logprobs(tree, rows).split(lengths)
    backward = completion_logprobs(tree, rows[::-1]).split(lengths[::-1])
    for one, other in zip(forward, backward[::-1], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_model_with_tree_attention_still_answers_ordinary_calls():
    model = tiny_llama()
    switched = copy.deepcopy(model)
    use_tree_attention(switched)
    ids = torch.tensor([random_ids(9, 0), random_ids(9, 1)])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padded on the left
    one, other = (some(input_ids=ids, attention_mask=mask).logits[mask.bool()] for some in (model, switched))
    assert torch.allclose(one, other, atol=1e-5)


def test_sliding_window_falls_back_to_rows_alone():
    plain, model = with_lora(tiny_mistral(window=6)), with_lora(tiny_mistral(window=6))
    assert not use_tree_attention(model.get_base_model())
    rows = [row(random_ids(20, 0), random_ids(9, 1)), row(random_ids(11, 2), random_ids(4, 3), 0.6)]
    assert_same(plain, model, rows)
    unlimited = with_lora(tiny_mistral(window=None))
    assert (alone(plain, rows) - alone(unlimited, rows)).abs().max() > 0.1  # so the window counts


@pytest.mark.parametrize(
    ("make", "changes", "served"),
    [
        (tiny_llama, {}, True),
        (tiny_qwen3, {}, True),
        (tiny_qwen3, {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, False),
        (tiny_mistral, {"window": None}, True),
        (tiny_mistral, {"window": 6}, False),
    ],
)
def test_tree_attention_serves_models_with_full_attention_only(make, changes, served):
    model = make(**changes)
    before = model.config._attn_implementation
    assert use_tree_attention(model) is served
    assert (model.config._attn_implementation != before) is served

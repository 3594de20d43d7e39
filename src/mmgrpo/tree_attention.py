"""Attention over a prefix tree, registered with transformers under the name `mmgrpo_tree`.

A model switched to it by `use_tree_attention` behaves as with SDPA until a forward call carries the keyword
`memory`; then every layer hands its queries, keys and values to `memory.attend`. Two memories serve training, one
pass over a whole tree, gradients included: `TreeFlex` on GPUs and `TreeBlocks` elsewhere, with the same numbers. The
sampler's two (`policy/key_values.py`) keep keys and values between passes.
Legend of shapes: N query nodes, H query heads, J key-value heads, E head size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmgrpo import tree_flex
from mmgrpo.prefix_tree import PrefixTree
from mmgrpo.tree_blocks import TreeBlocks
from mmgrpo.tree_flex import TreeFlex

NAME = "mmgrpo_tree"


class Memory(Protocol):
    """What the layers of one forward pass attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, H, N, E], key and value [1, J, N, E] -> [1, H, N, E]."""


class TreeMemory(Memory, Protocol):
    """A memory of one pass over a whole tree."""

    tree: PrefixTree  # what the pass has to run over: the tree that was asked for, perhaps with padding behind it


def use_tree_attention(model: PreTrainedModel) -> bool:
    """Switch `model` to tree attention; False where its layers can't be served (sliding windows, recurrence)."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # Mistral, Mixtral and others name no layer types: a window in the configuration is in use unless it says otherwise.
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if kinds != {"full_attention"} or windowed:
        return False
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def over(tree: PrefixTree, model: PreTrainedModel) -> TreeMemory:
    """What a training pass over `tree` attends to: FlexAttention on CUDA where it runs, SDPA in blocks elsewhere."""
    device = model.device
    if device.type == "cuda" and tree_flex.runs(device, *_heads(model)):
        return TreeFlex(tree, device, tree_flex.compiled())
    return TreeBlocks(tree, device)


def forward_arguments(memory: Memory, model: PreTrainedModel) -> dict:
    """Keyword arguments that make a forward call use `memory`."""
    # A 4-D mask is passed through untouched, so that no causal N x N mask is built for nothing.
    return {"memory": memory, "attention_mask": torch.zeros(1, 1, 1, 1, device=model.device), "use_cache": False}


def head_size(config: PreTrainedConfig) -> int:
    """Numbers of a query, key or value of one head; `config` is that of a text model."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, memory: Memory | None = None, **kwargs
):
    if memory is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return memory.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


def _heads(model: PreTrainedModel) -> tuple[torch.dtype, int, int, int]:
    """Type of the values in attention here and now, query heads, key-value heads, head size."""
    config, kind = model.config.get_text_config(), model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return dtype, config.num_attention_heads, config.num_key_value_heads, head_size(config)

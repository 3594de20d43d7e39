"""A LoRA layer that multiplies once: by the weight with its delta added, y = x (W + s B A)ᵀ.

PEFT's own layer multiplies by W, A and B in turn, then scales, casts and adds, each of which reads and writes the
activations once more; on a CPU that costs more than the multiplications. Here the delta is added to the weight
first, as the sampler does when it merges (`policy/sampler.py`): the trainer then computes with the very weights that
sampled, rounding included. The gradient of W is never formed.
Legend of shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn


def use_fused_lora(config: LoraConfig) -> LoraConfig:
    """Let PEFT wrap linear layers by `FusedLinear`; the adapters that it saves are as ever."""
    config._register_custom_module({nn.Linear: FusedLinear})
    return config


class FusedLinear(Linear):
    """PEFT's LoRA layer with one active adapter and without dropout in one product; all else is PEFT's."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        active = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(active) == 1 and not (self.disable_adapters or self.merged or args or kwargs)
        if not plain or not isinstance(self.lora_dropout[active[0]], nn.Identity) or active[0] in self.lora_variant:
            return super().forward(x, *args, **kwargs)
        (name,) = active
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        out = _Fused.apply(
            x.to(dtype), self.weight, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )
        return out if self.bias is None else out + self.bias.to(dtype)


class _Fused(torch.autograd.Function):
    """x [..., I], weight [O, I], a [R, I], b [O, R] -> [..., O] in the type of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        whole = (weight + scaling * (b @ a).to(weight.dtype)).to(x.dtype)
        ctx.save_for_backward(x, whole, a, b)
        ctx.scaling = scaling
        return x @ whole.T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, whole, a, b = ctx.saved_tensors
        rows, out = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        scaled = ctx.scaling * (out @ b.to(out.dtype))  # [N, R]
        grad_a = (scaled.T @ rows).to(a.dtype)
        grad_b = (ctx.scaling * (out.T @ (rows @ a.to(rows.dtype).T))).to(b.dtype)
        return gradient @ whole if ctx.needs_input_grad[0] else None, None, grad_a, grad_b, None

"""A LoRA layer that multiplies once: by the weight with its delta added, y = x (W + s B A)ᵀ.

PEFT's own layer multiplies by W, A and B in turn, then scales, casts and adds, each of which reads and writes the
activations once more; on a CPU that costs more than the multiplications. Here the delta is added to the float32 weight
first, as our sampler does when it merges (`policy/sampler.py`): the trainer then computes with the very weights that
sampled, rounding included. The gradient of W is never formed. Where W itself is bf16 (vLLM on a GPU), PEFT's layer stays:
a small delta would vanish in the sum, and vLLM, too, keeps it apart.
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
        if (
            not plain
            or self.weight.dtype != torch.float32
            or not isinstance(self.lora_dropout[active[0]], nn.Identity)
            or active[0] in self.lora_variant
        ):
            return super().forward(x, *args, **kwargs)
        (name,) = active
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        out = _Fused.apply(
            x.to(dtype), self.weight, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )
        return out if self.bias is None else out + self.bias.to(dtype)


class _Fused(torch.autograd.Function):
    """x [..., I], weight [O, I], a [R, I], b [O, R] -> [..., O] in the type of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return x @ _whole(weight, a, b, scaling, x.dtype).T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, a, b = ctx.saved_tensors
        rows, out = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        # Made again: kept, the sums of all layers would take as much memory as the model.
        grad_x = gradient @ _whole(weight, a, b, ctx.scaling, x.dtype) if ctx.needs_input_grad[0] else None
        grad_a = ctx.scaling * ((out @ b.to(out.dtype)).T @ rows)
        grad_b = ctx.scaling * (out.T @ (rows @ a.to(rows.dtype).T))
        return grad_x, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None


def _whole(weight: Tensor, a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """W + s B A, summed in float32 whatever autocast says."""
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight, b, a, alpha=scaling).to(dtype)

"""Linear layers whose weights lie in memory as oneDNN multiplies by them, for sampling on x86 processors.

A decode pass has few rows and reads every weight once; torch's own layer lets oneDNN lay the weight out anew in each of
these passes, which takes a third of the product's time. Here that happens once for each version of the weights. The
operators are the ones that torch.compile uses on a CPU for weights that stay.
Legend of shapes: I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PACKED_TYPES = (torch.bfloat16, torch.float32)


class PackedLinear(nn.Module):
    """`linear` for inference, with its weight packed; `put` replaces the weight."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self._dtype = linear.weight.dtype
        self.put(linear.weight)

    @property
    def weight(self) -> Tensor:
        """A copy of the weight [O, I] in torch's own order."""
        return self._packed.to_dense()

    def put(self, weight: Tensor) -> None:
        """Multiply by `weight` [O, I] from now on."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self._dtype), None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def pack_linear_layers(model) -> None:
    """Replace the linear layers of a model that only samples, where its processor and type of weights are served."""
    served = torch.backends.cpu.get_cpu_capability().startswith("AVX") and torch.backends.mkldnn.is_available()
    if not served or model.device.type != "cpu" or model.dtype not in PACKED_TYPES:
        return
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, PackedLinear(layer))


def put_weight(layer: nn.Module, weight: Tensor) -> None:
    """Let a linear layer, packed or not, multiply by `weight` [O, I]."""
    if isinstance(layer, PackedLinear):
        layer.put(weight)
    else:
        layer.weight.copy_(weight)

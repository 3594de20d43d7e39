"""Packed layers against torch's own, and which models get them."""

import pytest
import torch
from factories import tiny_llama
from torch import nn
from torch.nn.functional import linear

from mmgrpo.policy.packed_linear import PackedLinear, pack_linear_layers, put_weight

pytestmark = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="layers are packed on x86 processors only"
)


def a_layer(dtype, bias=False):
    torch.manual_seed(0)
    return nn.Linear(96, 160, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 5, 96), (300, 96), (1, 0, 96)])
def test_packed_layer_is_the_layer(shape, dtype, bias):
    layer, x = a_layer(dtype, bias), torch.randn(shape).to(dtype)
    found, wanted = PackedLinear(layer)(x), layer(x)
    assert found.shape == wanted.shape and found.dtype == dtype
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_that_was_put_is_the_one_it_multiplies_by(dtype):
    packed, x = PackedLinear(a_layer(dtype)), torch.randn(7, 96).to(dtype)
    weight = torch.randn(160, 96)
    put_weight(packed, weight)
    assert torch.equal(packed.weight, weight.to(dtype))
    torch.testing.assert_close(packed(x), linear(x, weight.to(dtype)))


def test_plain_layer_takes_a_weight_too():
    layer = a_layer(torch.float32)
    weight = torch.randn(160, 96)
    put_weight(layer, weight)
    assert torch.equal(layer.weight, weight)


def test_every_linear_layer_of_a_model_is_packed_and_another_type_is_left():
    packed, left = tiny_llama(), tiny_llama().double()
    pack_linear_layers(packed)
    pack_linear_layers(left)
    assert not [name for name, layer in packed.named_modules() if type(layer) is nn.Linear]
    assert not [name for name, layer in left.named_modules() if isinstance(layer, PackedLinear)]


def test_packed_model_computes_what_the_model_does():
    plain, packed, ids = tiny_llama(), tiny_llama(), torch.arange(12)[None]
    pack_linear_layers(packed)
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits)

"""The fused LoRA layer against PEFT's own: outputs, gradients, switched-off adapters and what is saved."""

import copy

import pytest
import torch
from factories import random_ids, tiny_llama
from peft import LoraConfig, PeftModel, get_peft_model

from mmgrpo.fused_lora import FusedLinear, use_fused_lora

LAYERS = ["q_proj", "o_proj", "down_proj"]


def both(*names, bias=False):
    """The same LoRA weights in PEFT's layers and in ours."""
    models = []
    for change in (lambda config: config, use_fused_lora):
        config = change(LoraConfig(r=4, lora_alpha=12, target_modules=LAYERS, task_type="CAUSAL_LM"))
        model = get_peft_model(tiny_llama(attention_bias=bias), config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
        torch.manual_seed(0)
        for key, weight in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(weight, std=0.2)
        models.append(model)
    assert any(isinstance(module, FusedLinear) for module in models[1].modules())
    return models


def logits(model, **changes):
    return model(input_ids=torch.tensor([random_ids(20, 0)]), **changes).logits


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_pefts(bias):
    theirs, ours = both("default", bias=bias)
    for model in (theirs, ours):
        logits(model).square().mean().backward()
    assert torch.allclose(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    expected = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys() and len(found) == 2 * len(LAYERS) * 2
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_bf16_gradients_point_where_pefts_do():
    theirs, ours = both("default")
    for model in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            loss = logits(model).float().square().mean()
        loss.backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if mine.grad is not None:
            assert mine.grad.dtype == torch.float32
            assert torch.cosine_similarity(mine.grad.flatten(), other.grad.flatten(), dim=0) > 0.99, name


def test_adapters_can_be_switched_and_switched_off():
    theirs, ours = both("plan", "write")
    seen = []
    for name in ("plan", "write"):
        for model in (theirs, ours):
            model.set_adapter(name)
        assert torch.allclose(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
        seen.append(logits(ours))
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    with ours.disable_adapter():
        assert torch.equal(logits(ours), logits(tiny_llama()))


def test_saved_adapter_loads_in_plain_peft(tmp_path):
    _, ours = both("default")
    ours.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_llama()), tmp_path)
    assert torch.allclose(logits(loaded), logits(ours), rtol=1e-5, atol=1e-5)

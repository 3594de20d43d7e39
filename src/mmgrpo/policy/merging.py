"""LoRA adapters as differences of weights, from a model in training or from a PEFT folder."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from mmgrpo.errors import UserError

WEIGHTS = "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def adapter_name(module: str) -> str:
    """The PEFT adapter of a module that has its own; PEFT allows no dots, and no name that stands in its "lora_"."""
    return "module-" + module.replace(".", "-")


def adapter_folder(saved: Path, adapter: str) -> Path:
    """Where PEFT puts an adapter when it saves a model to `saved`: there, or below where it has a name of its own."""
    return saved if adapter == "default" else saved / adapter


def deltas_of(peft_model, adapter: str) -> dict[str, Tensor]:
    """What `adapter` adds to each linear layer, by the layer's name in the base model; nothing where there is none."""
    from peft.tuners.lora import LoraLayer

    if adapter not in peft_model.peft_config:
        return {}
    layers = peft_model.get_base_model().named_modules()
    return {name: layer.get_delta_weight(adapter).detach() for name, layer in layers if isinstance(layer, LoraLayer)}


def deltas_in(folder: Path) -> dict[str, Tensor]:
    """The same from a PEFT folder."""
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except OSError as error:
        raise UserError(f"The adapter in {folder} can't be read ({error}): train it again.") from None
    scaling = config["lora_alpha"] / config["r"]
    names = [key[len(PREFIX) : -len(A)] for key in tensors if key.endswith(A)]
    return {name: scaling * tensors[PREFIX + name + B].float() @ tensors[PREFIX + name + A].float() for name in names}


def original_weight(model, name: str) -> Tensor:
    """The weight of a layer as it is without any adapter, whether PEFT has wrapped it or not."""
    layer = model.get_submodule(name)
    return (layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer).weight.detach()

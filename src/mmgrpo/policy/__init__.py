"""The policy: a causal language model that samples (`sampler.py`), answers DSPy (`lm.py`) and can be trained."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from mmgrpo import distributed, paths
from mmgrpo.errors import UserError, nearest
from mmgrpo.fused_lora import use_fused_lora
from mmgrpo.policy import embedded
from mmgrpo.policy.lm import PolicyEngine, PolicyLM
from mmgrpo.policy.merging import WEIGHTS, adapter_folder, adapter_name
from mmgrpo.policy.remote import RemoteSampler
from mmgrpo.policy.sampler import Sampler, TreeSampler
from mmgrpo.policy.vllm import VLLMSampler
from mmgrpo.settings import PolicySettings
from mmgrpo.tree_attention import use_tree_attention

EMBEDDED = {"smollm2-135m": embedded.posttrained, "smollm2-135m-published": embedded.published}
HUB_REVISIONS = {  # pinned; a hub model that isn't listed is refused
    "Qwen/Qwen3-0.6B": "c1899de289a04d12100db370d81485cdf75e47ca",
    "Qwen/Qwen3-8B": "b968826d9c46dd6066d109eabc6255188de91218",
    "meta-llama/Llama-3.1-8B-Instruct": "0e9e39f249a16976918f6564b8830bc894c89659",
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")


class Policy:
    """A language model as sampler and, once `trainable` is asked for, as PEFT model with its own weights.

    Without a `sampler` it samples from a copy of `base`.
    """

    def __init__(self, name: str, base, tokenizer, settings: PolicySettings, seed: int, sampler: Sampler | None = None):
        self.name = name
        self.settings = settings
        self.precision = resolve_precision(settings.precision)
        self.seed = seed
        self.tokenizer = tokenizer
        self._base = base  # float32 but with vLLM on a GPU; the sampler has its own weights in `precision`
        self._trainable = None
        if sampler is None:
            own = copy_in(base, self.dtype)
            sampler = TreeSampler(own, stop_ids_of(base, tokenizer), settings.batch, base, tokenizer.decode)
        self.sampler = sampler
        self.engine = PolicyEngine(self.sampler, tokenizer, settings, seed)

    def __deepcopy__(self, memo: dict) -> Policy:
        return self

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def in_training(self) -> bool:
        """Whether the policy has weights of its own, which may change."""
        return self._trainable is not None

    def lm(self, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int | None = None) -> PolicyLM:
        """The policy as a `dspy.LM`; greedy unless told otherwise."""
        truncation = {"top_p": top_p} | ({} if top_k is None else {"top_k": top_k})
        return PolicyLM(self, temperature=temperature, max_tokens=self.settings.max_tokens, **truncation)

    def trainable(self):
        """The PEFT model, wrapped on first use with one fresh LoRA named `default`."""
        if self._trainable is None:
            self.attach_adapters([])
        return self._trainable

    def attach_adapters(self, modules: Sequence[str], start: Path | None = None, seed: int | None = None) -> None:
        """LoRA weights to train: one for all modules, or one for each of `modules`, fresh or as in the folder `start`.

        Replaces what was trained before. `seed` (default: the policy's) draws fresh weights.
        """
        from peft import LoraConfig, get_peft_model

        s = self.settings
        lora = use_fused_lora(
            LoraConfig(
                r=s.lora_rank, lora_alpha=s.lora_alpha, lora_dropout=s.lora_dropout,
                target_modules=list(PROJECTIONS), task_type="CAUSAL_LM",
            )
        )  # fmt: skip
        if self._trainable is not None:
            self._base = self._trainable.unload()
        torch.manual_seed(self.seed if seed is None else seed)
        adapters = {module: adapter_name(module) for module in modules}
        first, *others = list(adapters.values()) or ["default"]
        self._trainable = get_peft_model(self._base, lora, adapter_name=first)
        for name in others:
            self._trainable.add_adapter(name, lora)
        self._trainable.base_model.set_adapter([first, *others])  # all of them require gradients
        use_tree_attention(self._trainable.get_base_model())
        self.engine.adapters = adapters
        if start is not None:
            self.load_adapter(start)

    def adapter_of(self, module: str) -> str:
        """The adapter that answers for a module."""
        return self.engine.adapters.get(module, "default")

    def activate(self, module: str) -> None:
        """Let the trainable model's forward pass use the adapter of `module`."""
        if self.engine.adapters:
            self.trainable().set_adapter(self.adapter_of(module))

    def sync(self) -> None:
        """Let the sampler use the trained weights as they are now."""
        self.sampler.follow(self.trainable())

    def save_adapter(self, folder: Path) -> Path:
        """Write the adapter (or one subfolder for each module's) as PEFT folders that transformers and vLLM load."""
        self.trainable().save_pretrained(folder, save_embedding_layers=False)  # else it asks the hub
        return folder

    def load_adapter(self, folder: Path) -> None:
        """Put the weights of `save_adapter` back into trainer and sampler."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        for name in self.engine.adapters.values() or ["default"]:
            file = adapter_folder(folder, name) / WEIGHTS
            if not file.exists():
                raise UserError(
                    f"{file} is missing: the weights in {folder} were trained with another setting of `adapters`."
                )
            set_peft_model_state_dict(self.trainable(), load_file(file), adapter_name=name)
        self.sync()


def names() -> list[str]:
    """Models that can be named in a profile."""
    return [*EMBEDDED, *HUB_REVISIONS]


def load(name: str, settings: PolicySettings, seed: int) -> Policy:
    """The policy `name`: embedded, or from the hub at a pinned revision."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name not in names():
        raise UserError(f"Unknown model {name!r}; {nearest(name, names())}.")
    place, revision = (EMBEDDED[name](), None) if name in EMBEDDED else (name, HUB_REVISIONS[name])
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    # Our sampler adds adapters to the weights; to bf16 weights, small ones would add nothing. vLLM keeps them apart.
    apart = device != "cpu" and settings.sampler == "vllm"
    dtype = DTYPES[resolve_precision(settings.precision)] if apart else torch.float32
    try:
        base = AutoModelForCausalLM.from_pretrained(place, revision=revision, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The model {name} could not be loaded ({reason}): check the network and your access to it."
        ) from None
    sampler = _vllm(name, place, revision, stop_ids_of(base, tokenizer), settings, seed)
    return Policy(name, base.to(device), tokenizer, settings, seed, sampler)


def _vllm(name: str, place, revision, stop_ids: list[int], settings: PolicySettings, seed: int) -> Sampler | None:
    """vLLM as sampler of the model at `place`, where the settings ask for it."""
    if settings.sampler == "transformers":
        return None
    if servers := paths.servers():
        return RemoteSampler(servers, name, stop_ids, settings.batch, paths.cache() / "served")
    if distributed.launched() > 1:
        raise UserError(
            "Several training processes can't share a vLLM engine of their own: start vLLM servers, as the top of "
            "mmgrpo/policy/remote.py says, and name them in MMGRPO_VLLM_SERVERS."
        )
    if find_spec("vllm") is None:
        raise UserError(
            "The profile's `policy` has `sampler: vllm`, and vLLM is not installed: install the extra `gpu` "
            "(`pip install -e '.[gpu]'`), or set `sampler: transformers`."
        )
    # On a GPU, vLLM's LoRA kernels take half precision alone.
    dtype = torch.bfloat16 if torch.cuda.is_available() else DTYPES[resolve_precision(settings.precision)]
    return VLLMSampler(place, stop_ids, settings, dtype=dtype, revision=revision, seed=seed)


def copy_in(model, dtype: torch.dtype):
    """A copy of `model` with weights in `dtype`. Its buffers stay as they are: rotary frequencies that are rounded to
    bf16 are off by a third of a percent, which at position 2,000 is the wrong angle."""
    weights = {id(weight): torch.nn.Parameter(weight.detach().to(dtype, copy=True)) for weight in model.parameters()}
    return copy.deepcopy(model, weights)


def resolve_precision(wanted: str) -> str:
    """`auto` means bf16 where the processor multiplies it natively, else fp32."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16"
    native = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def stop_ids_of(model, tokenizer) -> list[int]:
    """End-of-turn tokens: the tokenizer's, and those of the model's generation settings."""
    listed = model.generation_config.eos_token_id
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return sorted({tokenizer.eos_token_id, *listed} - {None})

"""Post-training of the embedded policy: teach a 135M model to follow DSPy's output format.

SmolLM2-135M-Instruct as published never answers in ChatAdapter's fields. Supervised fine-tuning on the lessons
(`lessons.py`) teaches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from mmgrpo import lessons
from mmgrpo.fused_lora import use_fused_lora
from mmgrpo.hashing import seed_of
from mmgrpo.logprobs import completion_logprobs
from mmgrpo.policy import PROJECTIONS
from mmgrpo.policy.merging import WEIGHTS
from mmgrpo.tree_attention import use_tree_attention

PUBLISHED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class _Reply:
    """What `completion_logprobs` needs of a lesson."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    temperature: float = 1.0


class ReplyTrainer(SFTTrainer):
    """SFTTrainer that computes prompts in common once, and the vocabulary only where a reply token is predicted.

    On a CPU the stock loss, which pads and scores every prompt position too, takes several times as long.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        replies = []
        columns = (inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool())
        for ids, labels, seen in zip(*columns, strict=True):
            prompt = int((labels[seen] == -100).sum())
            tokens = tuple(ids[seen].tolist())
            replies.append(_Reply(tokens[:prompt], tokens[prompt:]))
        count = sum(len(reply.completion_ids) for reply in replies)
        return -completion_logprobs(model, replies).sum() / (num_items_in_batch or count)


def train_adapter(base: Path, target: Path, *, seed: int, batch: int, learning_rate: float) -> list[dict]:
    """Fine-tune LoRA rank 16 on the lessons and save the adapter to `target`; returns the trainer's log.

    The loss covers the replies alone. bf16 autocast, and the adapter is stored in bf16 (under 10 MB). Goes on from a
    checkpoint beside `target` that was made with the same arguments and lessons.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    use_tree_attention(model)
    train, _ = lessons.draw(seed=seed)
    checkpoints = target.parent / "checkpoints" / f"{seed_of(base, seed, batch, learning_rate, train):x}"
    trainer = ReplyTrainer(
        model=model,
        args=_arguments(checkpoints, seed, batch, learning_rate),
        train_dataset=Dataset.from_list([lesson.as_row() for lesson in train]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=use_fused_lora(
            LoraConfig(r=16, lora_alpha=64, lora_dropout=0.0, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
        ),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    trainer.model.peft_config["default"].base_model_name_or_path = PUBLISHED_NAME
    trainer.model.save_pretrained(target, save_embedding_layers=False)
    (target / "README.md").unlink(missing_ok=True)  # a model card template
    weights = target / WEIGHTS
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}, weights)
    return trainer.state.log_history


def _arguments(checkpoints: Path, seed: int, batch: int, learning_rate: float) -> SFTConfig:
    return SFTConfig(
        output_dir=str(checkpoints),
        seed=seed,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",  # keeps the lessons of a sheet together
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        max_length=2048,
        logging_steps=10,
        save_strategy="steps",
        save_steps=50,
        save_total_limit=2,
        report_to="none",
    )

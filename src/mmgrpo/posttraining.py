"""Post-training of the embedded policy: teach a 135M model to follow DSPy's output format.

SmolLM2-135M-Instruct as published never answers in ChatAdapter's fields. Supervised fine-tuning on
rows that the project wrote (`data/posttraining/*.jsonl`, none of a task's subjects) teaches the shape
of programs: typed labels, chain of thought, several fields, demonstrations. The texts are rendered
by DSPy's own adapter, so what is learnt is the format that programs really use.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dspy
from transformers import TrainerCallback

from mmgrpo import paths

PUBLISHED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
HELD_OUT_SUBJECTS = ("astronomy club", "bicycle repair shop")  # validation of the format, never trained on
LABELS = (4, 14)  # fewest and most labels that a classification prompt offers
SHARE_WITH_DEMOS = 0.3  # of the classification prompts
SHARE_WITHOUT_REASONING = 0.1  # of the classification prompts; the rest is chain of thought

INPUT_NAMES = ("text", "message", "query", "request", "utterance")
OUTPUT_NAMES = ("label", "intent", "category", "topic")
INTENT_INSTRUCTIONS = (
    None,  # DSPy's own sentence, made from the field names
    None,
    "Decide which label fits the message best.",
    "Read what the person wrote and name what they want.",
    "You sort the mail of a help desk. Pick the one label that matches the request.",
    "Choose exactly one label from the list. Think about what the writer needs, not about single words.",
    "Work out the purpose of the message, then copy the matching label letter by letter.",
)
CONCLUSIONS = ("The label is {}.", "So this is {}.", "That matches {}.", "The best fit is {}.", "This belongs to {}.")
LESSON_INSTRUCTIONS = {
    "redact": "Write a request for an outside assistant that keeps the user's private details to yourself.",
    "respond": "Answer the user with the help of the outside assistant's reply.",
    "extract": "Find who and where, and what is wished for.",
    "rephrase": "Say the sentence again in the given style.",
    "notes": "Collect new notes from the passages that help to check the claim.",
    "query": "Write the next search query that helps to check the claim.",
    "answer": "Answer the question from the context.",
    "judge": "Say whether the evidence supports the statement.",
    "describe_data": "Describe what the rows of a data set have in common.",
    "describe_program": "Describe the task that a program is meant to solve, and how it works.",
    "propose_instruction": "Write an instruction that makes a language model do the task well.",
}


@dataclass(frozen=True)
class Lesson:
    """One supervised example: the chat messages that come before, and the assistant's reply."""

    prompt: list[dict[str, str]]
    completion: str

    def as_row(self) -> dict[str, list[dict[str, str]]]:
        """The conversational prompt-completion form of TRL's SFTTrainer."""
        return {"prompt": self.prompt, "completion": [{"role": "assistant", "content": self.completion}]}


def lessons(folder: Path = paths.DATA / "posttraining", *, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Training and validation lessons, shuffled; validation has the held-out subjects only."""
    rng = random.Random(seed)
    rows = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.open(encoding="utf-8")]
    intents = [row for row in rows if "subject" in row]
    by_subject: dict[str, list[dict]] = {}
    for row in intents:
        by_subject.setdefault(row["subject"], []).append(row)
    train = [_program_lesson(row, rng) for row in rows if "lesson" in row]
    train += [_intent_lesson(row, by_subject, rng) for row in intents if row["subject"] not in HELD_OUT_SUBJECTS]
    valid = [_intent_lesson(row, by_subject, rng) for row in intents if row["subject"] in HELD_OUT_SUBJECTS]
    rng.shuffle(train)
    rng.shuffle(valid)
    return train, valid


def _render(signature: type[dspy.Signature], demos: list[dict], inputs: dict, outputs: dict) -> Lesson:
    adapter = dspy.ChatAdapter()
    reply = adapter.format_assistant_message_content(signature, outputs).strip()
    return Lesson(prompt=adapter.format(signature, demos, inputs), completion=reply)


def _intent_lesson(row: dict, by_subject: dict[str, list[dict]], rng: random.Random) -> Lesson:
    """A classification prompt with a random choice of labels, field names, instruction and demonstrations."""
    labels = _choose_labels(row, by_subject, rng)
    source, target = rng.choice(INPUT_NAMES), rng.choice(OUTPUT_NAMES)
    fields = {source: (str, dspy.InputField()), target: (Literal[tuple(labels)], dspy.OutputField())}
    signature = dspy.Signature(fields, rng.choice(INTENT_INSTRUCTIONS))
    reasoned = rng.random() >= SHARE_WITHOUT_REASONING
    if reasoned:
        signature = signature.prepend("reasoning", dspy.OutputField(desc="${reasoning}"), str)

    def outputs(example: dict, with_reasoning: bool) -> dict:
        thought = f"{example['gist']} {rng.choice(CONCLUSIONS).format(example['label'])}"
        return ({"reasoning": thought} if with_reasoning else {}) | {target: example["label"]}

    demos = []
    if rng.random() < SHARE_WITH_DEMOS:
        pool = [r for r in by_subject[row["subject"]] if r["label"] in labels and r["text"] != row["text"]]
        for demo in rng.sample(pool, rng.randint(1, 3)):
            bootstrapped = reasoned and rng.random() < 0.7  # labelled demonstrations come without reasoning
            demos.append({source: demo["text"], **outputs(demo, bootstrapped)})
    return _render(signature, demos, {source: row["text"]}, outputs(row, reasoned))


def _choose_labels(row: dict, by_subject: dict[str, list[dict]], rng: random.Random) -> list[str]:
    """The row's label among others of its subject, and of a second subject where more are wanted."""
    size = rng.randint(*LABELS)
    own = sorted({r["label"] for r in by_subject[row["subject"]]} - {row["label"]})
    second = rng.choice(sorted(set(by_subject) - {row["subject"], *HELD_OUT_SUBJECTS}))
    more = sorted({r["label"] for r in by_subject[second]} - {row["label"], *own})
    rng.shuffle(own)
    rng.shuffle(more)
    chosen = [row["label"], *(own + more)[: size - 1]]
    rng.shuffle(chosen)
    return chosen


def _program_lesson(row: dict, rng: random.Random) -> Lesson:
    """A lesson with several fields, types read off its values."""

    def kind(name: str, value: object) -> object:
        if name == "verdict":
            return Literal["supported", "refuted", "unknown"]
        return list[str] if isinstance(value, list) else str

    fields = {name: (kind(name, value), dspy.InputField()) for name, value in row["inputs"].items()}
    fields |= {name: (kind(name, value), dspy.OutputField()) for name, value in row["outputs"].items()}
    instructions = LESSON_INSTRUCTIONS[row["lesson"]] if rng.random() < 0.7 else None
    signature = dspy.Signature(fields, instructions)
    return _render(signature, [], row["inputs"], row["outputs"])


def train_adapter(base: Path, target: Path, *, seed: int, updates: int, batch: int, learning_rate: float) -> list[dict]:
    """Fine-tune LoRA rank 16 on the lessons and save the adapter to `target`; returns the trainer's log.

    The loss covers the replies alone. The learning rate falls by a cosine over one epoch, of which `updates` are
    made. bf16 autocast, and the adapter is stored in bf16 (under 10 MB). Goes on from a checkpoint beside `target`.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig

    from mmgrpo.policy import PROJECTIONS
    from mmgrpo.policy.merging import WEIGHTS

    train, _ = lessons(seed=seed)
    config = SFTConfig(
        output_dir=str(target.parent / "checkpoints"),
        seed=seed,
        num_train_epochs=1,
        # One row at a time: no padding, and logits only where a reply token is predicted.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        max_length=2048,
        logging_steps=5,
        save_strategy="steps",
        save_steps=40,
        save_total_limit=1,
        report_to="none",
    )
    trainer = _reply_trainer_class()(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([lesson.as_row() for lesson in train]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=16, lora_alpha=64, lora_dropout=0.0, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
        ),
    )
    trainer.add_callback(_StopAfter(updates))
    checkpoints = Path(config.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    trainer.model.peft_config["default"].base_model_name_or_path = PUBLISHED_NAME
    trainer.model.save_pretrained(target)
    (target / "README.md").unlink(missing_ok=True)  # a model card template
    weights = target / WEIGHTS
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}, weights)
    return trainer.state.log_history


class _StopAfter(TrainerCallback):
    """Ends training after some updates, with the schedule that was planned for more."""

    def __init__(self, updates: int):
        self.updates = updates

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.updates


def _reply_trainer_class() -> type:
    import torch
    from trl import SFTTrainer

    class ReplyTrainer(SFTTrainer):
        """SFTTrainer that projects onto the vocabulary only where a reply token is predicted.

        On a CPU the stock loss scores every prompt position too, which takes three times as long.
        """

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs["labels"][0, 1:]
            reply = (labels != -100).nonzero().squeeze(1)
            logits = model(input_ids=inputs["input_ids"], logits_to_keep=reply, use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[reply], reduction="sum")
            return loss / (len(reply) if num_items_in_batch is None else num_items_in_batch)

    return ReplyTrainer

"""TRL's GRPOTrainer with its step overridden: a step trains on whatever rows the program's rollouts gave.

TRL brings optimizer, schedule, LoRA, precision, logging, checkpoints and resumption. Its own sampling, grouping
and loss know one prompt and one completion a sample; here a step's rows come from `collect`, go
through the prefix tree in micro-batches of a token budget, and carry their own weights in the loss. TRL's
dataset only counts steps, and everything random derives from (seed, step), so a resumed run goes on exactly.
Several processes each train on a share of the micro-batches (`distributed.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from datasets import Dataset
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from mmgrpo import distributed, prefix_tree
from mmgrpo.errors import UserError
from mmgrpo.logprobs import completion_logprobs, inputs_of
from mmgrpo.objective import Row, policy_loss
from mmgrpo.policy import Policy
from mmgrpo.policy.sampler import TreeSampler
from mmgrpo.recomputation import keep_products_only
from mmgrpo.settings import GRPOSettings

LOGGED = ("loss", "kl", "clipped", "truncated")  # of `Terms`
ADAPTERS = r".*\.lora_[AB]"  # modules with weights in training
MAX_BAD_STEPS = 5  # steps in a row whose loss was not finite, before training stops


@dataclass(frozen=True)
class Batch:
    """What a step trains on, and what is known of the rollouts it came from."""

    rows: tuple[Row, ...]
    metrics: dict[str, float]  # logged with each of its updates
    spent: dict[str, float] = field(default_factory=dict)  # on sampling; logged with the first of its updates alone


class RowTrainer(GRPOTrainer):
    """Trains the policy on rows. `collect(step)` returns the batch of a step; it is asked once each `iterations`."""

    def __init__(
        self, *, policy: Policy, settings: GRPOSettings, collect: Callable[[int], Batch], args: GRPOConfig, callbacks
    ):
        check_trl()
        super().__init__(
            model=policy.trainable(),
            reward_funcs=no_reward,  # rewards are in the rows
            args=args,
            # TRL repeats each entry twice (its smallest group) and iterates `iterations` times over it; each process
            # takes one a step.
            train_dataset=Dataset.from_dict({"step": list(range(settings.steps * args.world_size))}),
            processing_class=policy.tokenizer,
            callbacks=callbacks,
        )
        check_launch(self.accelerator, policy)
        if args.use_cpu:
            keep_products_only(policy.trainable().get_base_model())
        if self.accelerator.is_fsdp2:
            # The adapters stay whole, so that gradients, checkpoints and samplers are those of a single process; told of
            # FSDP, the Trainer would save and load parts.
            self.accelerator.state.fsdp_plugin.ignored_modules = ADAPTERS
            self.is_fsdp_enabled = False
        self.remove_callback(PrinterCallback)
        self.policy = policy
        self.settings = settings
        self.collect = collect
        self._batch: Batch | None = None
        self._old: list[Tensor] = []
        self._bad_steps = 0

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Rollouts (or the buffered ones), then the gradient of all micro-batches. Returns the step's loss."""
        model.train()
        model = self.accelerator.unwrap_model(model)  # gradients are added up here, once a step
        first = self.state.global_step % self.settings.iterations == 0
        if first or self._batch is None:
            self._batch = self.collect(self.state.global_step // self.settings.iterations)
        self.policy.sampler.sleep()
        rows = self._batch.rows
        packs = distributed.share(
            [
                pack
                for adapter in dict.fromkeys(self.policy.adapter_of(row.module) for row in rows)
                for pack in _packs_of(adapter, rows, self.policy, self.settings.token_budget)
            ],
            spare=[replace(row, token_weight=0.0) for row in rows[:1]] if self.accelerator.is_fsdp2 else None,
        )
        if self.settings.iterations > 1 and (first or len(self._old) != len(packs)):
            self._old = [self._logprobs(model, pack, grad=False) for pack in packs]
        return self._backward(model, packs, self._batch.metrics | (self._batch.spent if first else {}))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """The weights alone: the Trainer's own would freeze all adapters but one before the optimizer is made."""
        self.policy.load_adapter(Path(resume_from_checkpoint))

    def _backward(self, model, packs: Sequence[list[Row]], metrics: dict[str, float]) -> Tensor:
        device = self.accelerator.device
        totals = torch.zeros(len(LOGGED) + 2, device=device)  # then mismatch and tokens
        finite = torch.ones((), dtype=torch.bool, device=device)
        for place, pack in enumerate(packs):
            logprobs = self._logprobs(model, pack, grad=True)
            old = self._old[place] if self._old else logprobs.detach()
            advantages, weights, sampled = _per_token(pack, logprobs.device)
            terms = policy_loss(
                logprobs, old, self._reference(model, pack) if self.settings.beta else None, advantages, weights, sampled,
                objective=self.settings.objective, epsilon=self.settings.epsilon,
                epsilon_high=self.settings.epsilon_high, beta=self.settings.beta,
                importance_cap=self.settings.importance_cap,
            )  # fmt: skip
            finite &= torch.isfinite(terms.loss)  # if not, go on: other processes may need this one's passes
            self.accelerator.backward(terms.loss)
            counted = (weights > 0).float()
            mismatch = (counted * (logprobs.detach() - sampled).abs()).sum()
            totals += torch.stack([*(getattr(terms, name).detach() for name in LOGGED), mismatch, counted.sum()])
        trained = [weight for name, weight in model.named_parameters() if "lora_" in name]
        distributed.sum_gradients(trained)
        for weight in trained:
            if weight.grad is not None:
                finite &= torch.isfinite(weight.grad).all()
        if distributed.summed((~finite).float()):
            return self._skip(model, metrics, device)
        self._bad_steps = 0
        loss, *others, mismatch, tokens = distributed.summed(totals).tolist()
        if tokens and self.state.global_step % self.settings.iterations == 0:
            metrics["sampler_mismatch"] = mismatch / tokens
        self._log(metrics | dict(zip(LOGGED[1:], others, strict=True)) | {"skipped": 0.0})
        return torch.tensor(loss, device=device)

    def _skip(self, model, metrics: dict[str, float], device) -> Tensor:
        """Leave the weights as they are after a loss or gradient that is not finite; stop when it keeps happening."""
        self._bad_steps += 1
        if self._bad_steps >= MAX_BAD_STEPS:
            raise UserError(
                f"The loss was not finite in {MAX_BAD_STEPS} steps in a row: lower the learning rate, or set precision to fp32."
            )
        model.zero_grad(set_to_none=True)
        self._log(metrics | {"skipped": 1.0})
        return torch.zeros((), device=device)

    def _logprobs(self, model, pack: list[Row], *, grad: bool) -> Tensor:
        self.policy.activate(pack[0].module)
        with torch.set_grad_enabled(grad), self.accelerator.autocast():
            return completion_logprobs(model, pack)

    def _reference(self, model, pack: list[Row]) -> Tensor:
        """Log-probabilities under the policy without its adapter."""
        with self.accelerator.unwrap_model(model).disable_adapter():
            return self._logprobs(model, pack, grad=False)

    def _log(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)


def _packs_of(adapter: str, rows: Sequence[Row], policy: Policy, budget: int) -> list[list[Row]]:
    """Micro-batches of one adapter's rows."""
    mine = [row for row in rows if policy.adapter_of(row.module) == adapter]
    return [[mine[index] for index in pack] for pack in prefix_tree.pack(inputs_of(mine), budget)]


def _per_token(pack: list[Row], device) -> tuple[Tensor, Tensor, Tensor]:
    """Advantage, weight and sampled log-probability of every completion token of a micro-batch."""
    lengths = torch.tensor([len(row.completion_ids) for row in pack])
    values = torch.tensor([[row.advantage, row.token_weight] for row in pack], dtype=torch.float32)
    spread = values.repeat_interleave(lengths, dim=0).to(device)
    sampled = torch.tensor([value for row in pack for value in row.sampled_logprobs], device=device)
    return spread[:, 0], spread[:, 1], sampled


def no_reward(prompts, completions, **kwargs):
    """TRL wants a reward function; rows bring their rewards along, and this one is never asked."""
    raise NotImplementedError("rewards come with the rows")


def arguments(settings: GRPOSettings, *, folder: Path, seed: int, precision: str, report_to: str) -> GRPOConfig:
    """TRL's configuration for a run in `folder`: constant learning rate after warm-up."""
    config = GRPOConfig(
        output_dir=str(folder),
        seed=seed,
        max_steps=settings.steps * settings.iterations,
        per_device_train_batch_size=2,
        num_generations=2,
        num_iterations=settings.iterations,
        steps_per_generation=1,
        shuffle_dataset=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        weight_decay=0.0,
        beta=0.0,  # our loss adds the KL term; TRL would load a reference model
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="steps",
        save_steps=settings.save_every * settings.iterations,
        save_total_limit=2,
        report_to=report_to,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    config._n_gpu = min(config.n_gpu, 1)  # TRL refuses several; other GPUs belong to other processes
    return config


def check_launch(accelerator: Accelerator, policy: Policy) -> None:
    """Processes were launched in a way that this trainer and the policy's sampler serve; a sentence where not."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError(
            "Training with DeepSpeed is not supported: accelerate has it update the weights after every backward pass, "
            "and a step here has several. Launch with DDP (`accelerate launch --multi_gpu`), or with FSDP to shard the "
            "frozen weights (`accelerate launch --use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false`)."
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2 or accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        raise UserError(
            "FSDP was launched in another way than this trainer serves: give `accelerate launch --use_fsdp` the options "
            "`--fsdp_version 2` and `--fsdp_cpu_ram_efficient_loading false`."
        )
    if isinstance(policy.sampler, TreeSampler):
        raise UserError(
            "FSDP shards the weights that `sampler: transformers` samples with: set `sampler: vllm` in the profile's "
            "`policy` and start vLLM servers, as the top of mmgrpo/policy/remote.py says; or launch with DDP "
            "(`accelerate launch --multi_gpu`)."
        )
    if any(isinstance(module, FSDPModule) for module in policy.trainable().modules()):
        raise UserError(
            "FSDP has sharded this policy's weights in an earlier training, and can't shard them again: load the policy "
            "anew (`mmgrpo.policy.load`) for each training, or launch with DDP (`accelerate launch --multi_gpu`)."
        )


def check_trl() -> None:
    """The pinned TRL has the hooks that are overridden; a sentence instead of a strange failure where it hasn't."""
    for hook in ("training_step", "_load_from_checkpoint"):
        theirs = getattr(GRPOTrainer, hook, None)
        expected = list(inspect.signature(getattr(RowTrainer, hook)).parameters)
        found = [] if theirs is None else list(inspect.signature(theirs).parameters)
        if found != expected:
            import trl

            raise UserError(
                f"TRL {trl.__version__} has GRPOTrainer.{hook}({', '.join(found)}), expected ({', '.join(expected)}): "
                "install the version that the lock names."
            )


class StepBar(TrainerCallback):
    """A progress bar with time left and the latest reward."""

    def __init__(self, title: str):
        self.title = title

    def on_train_begin(self, args, state, control, **kwargs):
        from tqdm.auto import tqdm

        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "reward" in logs:
            self.bar.set_postfix(reward=f"{logs['reward']:.3f}", refresh=False)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()

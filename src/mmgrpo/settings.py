"""Every number of a run, checked when it is read: pydantic models, frozen, unknown keys refused.

The defaults are the paper's (arXiv 2508.04660, experimental settings) unless a line says otherwise;
profiles (`profiles/*.yaml`) override them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitSizes(Settings):
    """Examples in each split, and where the rows come from when `MMGRPO_DATA_DIR` isn't set."""

    source: Literal["embedded", "hub"] = "embedded"
    train: int = Field(gt=0)
    valid: int = Field(gt=0)
    test: int = Field(gt=0)


class PolicySettings(Settings):
    """The language model that samples and is trained."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the processor multiplies it natively
    context: int = Field(8192, gt=0)  # tokens of prompt and completion together
    max_tokens: int = Field(512, gt=0)  # of one completion; our choice
    batch: int = Field(64, gt=0)  # calls generated together; our choice
    sampler: Literal["transformers", "vllm"] = "transformers"  # of rollouts and evaluations; vLLM on a GPU: in bf16
    lora_rank: int = Field(16, gt=0)
    lora_alpha: int = Field(64, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)  # paper 0.05; zero, as one shared prefix has one forward pass

    @model_validator(mode="after")
    def _prompt_fits(self) -> PolicySettings:
        if self.max_tokens >= self.context:
            raise ValueError(
                f"max_tokens {self.max_tokens} leaves no room for a prompt in the context of {self.context}"
            )
        return self


class SamplingSettings(Settings):
    """How rollouts are sampled; evaluation is greedy."""

    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, gt=0)


class GRPOSettings(Settings):
    """One GRPO run, module-level or trajectory-level."""

    steps: int = Field(750, gt=0)
    inputs: int = Field(4, gt=0)  # training inputs a step
    rollouts: int = Field(12, ge=2)  # runs of the program on each input
    group_size: int = Field(12, ge=2)  # K of SelectKDiverseElements; larger groups are cut to it
    padding: Literal["fill", "truncate", "ragged"] = "fill"
    objective: Literal["grpo", "cispo"] = "grpo"
    scale: Literal["group", "batch", "none"] = "group"  # what the advantage is divided by the deviation of
    epsilon: float = Field(0.2, gt=0)  # clip of the update; the paper's value is unknown to us; TRL's default
    epsilon_high: float = Field(5.0, gt=0)  # CISPO's cap of the importance weight; our choice
    importance_cap: float | None = Field(None, gt=0)  # of p_trainer / p_sampler as weight of a token; None: off
    beta: float = Field(0.01, ge=0)  # weight of the KL term
    iterations: int = Field(1, gt=0)  # updates on the same rollouts
    learning_rate: float = Field(1e-5, gt=0)
    warmup_steps: int = Field(10, ge=0)  # constant afterwards; the length is our choice
    max_grad_norm: float = Field(0.1, gt=0)
    format_failure_reward: float = Field(-1.0, lt=0)  # of a run none of whose fields parsed; 0 is a wrong answer
    adapters: Literal["shared", "per_module"] = "shared"
    validate_every: int = Field(50, gt=0)  # steps; our choice
    save_every: int = Field(10, gt=0)  # steps between checkpoints, all that a kill can cost; our choice
    patience: int | None = Field(None, gt=0)  # stop after so many validations in a row without a better score
    token_budget: int = Field(4096, gt=0)  # distinct tokens of one forward pass, long prompts aside; our choice

    @model_validator(mode="after")
    def _group_fits(self) -> GRPOSettings:
        if self.group_size > self.rollouts:
            raise ValueError(f"group_size {self.group_size} is larger than rollouts {self.rollouts}")
        return self


class MIPROSettings(Settings):
    """DSPy's MIPROv2."""

    trials: int = Field(12, gt=0)
    fewshot_candidates: int = Field(12, ge=2)
    instruction_candidates: int = Field(6, ge=2)
    bootstrapped_demos: int = Field(4, ge=0)  # DSPy's default, as below
    labeled_demos: int = Field(4, ge=0)
    minibatch: int | None = Field(None, gt=0)  # validation examples a trial; None scores each trial on all
    temperature: float = Field(1.0, gt=0)  # of the proposer
    proposal_tokens: int = Field(512, gt=0)  # most tokens of one of its replies; our choice


class GEPASettings(Settings):
    """DSPy's GEPA, which the paper leaves out; all values our choice unless a line says otherwise."""

    metric_calls: int = Field(1200, gt=0)  # program runs in all; about those of MIPROv2's 12 trials on 100 examples
    minibatch: int = Field(3, gt=0)  # training examples a proposal is made from and first judged on; GEPA's default
    temperature: float = Field(1.0, gt=0)  # of the proposer; the advice of DSPy's documentation
    proposal_tokens: int = Field(512, gt=0)  # most tokens of one of its replies


class FastSlowSettings(Settings):
    """Prompts and weights in turns, under one budget of program runs; all values our choice."""

    rounds: int = Field(3, ge=2)
    trials: int = Field(3, gt=0)  # of MIPROv2, each round
    runs: int | None = Field(None, gt=0)  # the budget, validation of the weights not counted; None: that of `grpo`


class TaskSettings(Settings):
    """What one task changes of its profile."""

    splits: SplitSizes
    max_tokens: int | None = Field(None, gt=0)
    grpo: dict = {}
    options: dict = {}  # of the task itself, checked by its file in `tasks/`


class Profile(Settings):
    """A whole study: which cells, and every setting of each."""

    name: str
    purpose: str
    smoke: bool = False
    models: tuple[str, ...] = Field(min_length=1)
    strategies: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    tasks: dict[str, TaskSettings] = Field(min_length=1)
    policy: PolicySettings = PolicySettings()
    sampling: SamplingSettings = SamplingSettings()
    grpo: GRPOSettings = GRPOSettings()
    mipro: MIPROSettings = MIPROSettings()
    gepa: GEPASettings = GEPASettings()
    fast_slow: FastSlowSettings = FastSlowSettings()
    tracker: Literal["none", "tensorboard", "wandb"] = "tensorboard"  # gets numbers only
    models_grpo: dict[str, dict] = {}  # what a model changes of `grpo`, as the paper does for Llama 3.1
    strategies_grpo: dict[str, dict] = {}  # what a strategy changes of it, as the paper does for trajectory level
    models_sampling: dict[str, dict] = {}  # likewise of `sampling`

    def grpo_for(self, task: str, model: str, strategy: str) -> GRPOSettings:
        changes = self.models_grpo.get(model, {}) | self.strategies_grpo.get(strategy, {}) | self.tasks[task].grpo
        return GRPOSettings(**(self.grpo.model_dump() | changes))

    def sampling_for(self, model: str) -> SamplingSettings:
        return SamplingSettings(**(self.sampling.model_dump() | self.models_sampling.get(model, {})))

    def policy_for(self, task: str) -> PolicySettings:
        longest = self.tasks[task].max_tokens
        return PolicySettings(**(self.policy.model_dump() | ({} if longest is None else {"max_tokens": longest})))

"""The loss: one formula over per-token weights for both groupings, GRPO or CISPO, with a KL term.

Every sampled token t of every row carries an advantage Â and a weight w; the loss is the weighted sum

    L = -Σ_t w_t ( objective_t - β KL_t ),

so no other normaliser exists. Weights sum to 1 over a step's tokens: module level 1/(groups · G · |o|), one
call's length; trajectory level 1/(groups · G · |ρ|), one run's length (Eq. 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmgrpo.grouping import Group


@dataclass(frozen=True)
class Row:
    """One call as the trainer sees it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampled_logprobs: tuple[float, ...]  # the sampler's, which the trainer's are compared with
    temperature: float
    advantage: float
    token_weight: float  # of each of the row's tokens
    module: str


@dataclass(frozen=True)
class Terms:
    """What the loss is made of, for the log: sums over tokens, weighted like the loss."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor  # share of tokens whose update or importance weight was clipped
    truncated: Tensor  # share of tokens whose weight against the sampler's mismatch was capped


def rows_of(groups: Sequence[Group]) -> list[Row]:
    """The rows of a step's groups. Calls without tokens have nothing to train and are left out."""
    rows = []
    for group in groups:
        for member in group.members:
            weight = 1.0 / (len(groups) * len(group.members) * max(member.tokens, 1))
            for call in member.calls:
                if call.completion_ids:
                    temperature = call.temperature or 1.0
                    rows.append(
                        Row(
                            call.prompt_ids,
                            call.completion_ids,
                            call.logprobs,
                            temperature,
                            member.advantage,
                            weight,
                            call.module,
                        )
                    )
    return rows


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    sampled_logprobs: Tensor | None = None,
    *,
    objective: Literal["grpo", "cispo"],
    epsilon: float,
    epsilon_high: float,
    beta: float,
    importance_cap: float | None = None,
) -> Terms:
    """The loss of some tokens; all tensors [T].

    `ref_logprobs` may be None where `beta` is 0, `sampled_logprobs` where there is no `importance_cap`.

    GRPO: min(ω Â, clip(ω, 1-ε, 1+ε) Â), ω = exp(log p - log p_old).
    CISPO: sg(min(ω, ε_high)) Â log p (sg: no gradient).
    With a cap c, each objective_t is multiplied by sg(min(p_old / p_sampled, c)): truncated importance sampling, which
    corrects for a sampler whose probabilities are not quite the trainer's (Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training").
    KL: the k3 estimator p_ref/p - log(p_ref/p) - 1, as the paper has it (TRL 1.16 multiplies it by ω by default).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    if objective == "grpo":
        bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
        value = torch.minimum(ratio * advantages, bounded * advantages)
        clipped = bounded * advantages < ratio * advantages
    else:
        value = ratio.clamp(max=epsilon_high).detach() * advantages * logprobs
        clipped = ratio > epsilon_high
    truncated = torch.zeros_like(weights)
    if importance_cap is not None:
        mismatch = torch.exp(old_logprobs - sampled_logprobs).detach()
        value = value * mismatch.clamp(max=importance_cap)
        truncated = mismatch > importance_cap
    loss = -(weights * value).sum()
    kl = torch.zeros((), dtype=logprobs.dtype, device=logprobs.device)
    if beta:
        gap = ref_logprobs - logprobs
        kl = (weights * (torch.exp(gap) - gap - 1)).sum()
        loss = loss + beta * kl
    return Terms(loss, kl.detach(), (weights * clipped).sum().detach(), (weights * truncated).sum())

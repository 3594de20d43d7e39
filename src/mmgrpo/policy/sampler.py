"""Token ids in, token ids and log-probabilities out: batched sampling with every shared prefix computed once.

The sampler owns a copy of the model, with the adapter of the policy it follows merged into its weights. One batch goes
through two phases. Prefill: the prompts, merged into a prefix tree, pass once, each distinct token a single time;
what all of them begin with (a module's instructions and demonstrations) is kept for the batches to come, as long
as the weights stay. Decode: a pass carries the last token of each row and a guess at the next ones (`lookup.py`), and
rows grow by what they choose of that and one token more; they read a common prompt together, and leave the batch when
they are finished. Sampling is seeded call by call, so that a call's result depends neither on its neighbours nor on
their order, nor on any guess.
Legend of shapes: R live rows, T tokens of a pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mmgrpo import prefix_tree
from mmgrpo.errors import UserError
from mmgrpo.policy.key_values import Prefilled, Rows, Stem
from mmgrpo.policy.lookup import Lookup
from mmgrpo.policy.merging import deltas_in, deltas_of, original_weight
from mmgrpo.policy.packed_linear import pack_linear_layers, put_weight
from mmgrpo.prefix_tree import PrefixTree
from mmgrpo.tree_attention import forward_arguments, use_tree_attention

PREFILL_BLOCK = 512  # nodes a prefill pass
STEMS = 8  # prefixes whose keys and values are kept
SHORTEST_STEM = 32  # tokens; chat templates alone have some in common
PASS = 64  # tokens of a decode pass that guesses may fill: until about here it takes little longer than with one


@dataclass(frozen=True)
class SamplingRequest:
    """One completion that is asked for."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float  # 0: the likeliest token each time
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0
    weights: Path | None = None  # PEFT folder whose adapter answers; None: the followed policy
    adapter: str = "default"  # the adapter of a module, where modules have their own; an unknown one adds nothing
    stop: str | None = None  # text after which nothing is read: a sampler that sees it ends the completion with it


@dataclass(frozen=True)
class Completion:
    """One sampled completion, its end-of-turn token included."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]


class Sampler(Protocol):
    """What a policy samples with: this file's, vLLM here (`vllm.py`) or vLLM servers (`remote.py`)."""

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Completions in the order of `requests`."""

    def follow(self, policy) -> None:
        """Sample from `policy` (a PEFT model with LoRA adapters) as it is now; call again after each update."""

    def sleep(self) -> None:
        """Training begins: leave the processor's memory to it until the next call, where there is some to leave."""


class TreeSampler(Sampler):
    """Samples from a causal model of transformers on one device. `decode` turns token ids into text."""

    def __init__(
        self, model, stop_ids: Sequence[int], batch: int, base=None, decode: Callable[[list[int]], str] | None = None
    ):
        self.model = model.eval().requires_grad_(False)
        self._base = base  # has the original weights; adapters are merged into `model` only
        self.stop_ids = frozenset(stop_ids)
        self._decode_text = decode
        self.batch = batch
        self._source = None
        self._merged: tuple[Path | None, str] | None = None  # what is in the model's weights
        self._stems: list[Stem] = []  # of the merged weights, the latest first
        self._changed: set[str] = set()  # layers whose weights are not the original ones
        if not use_tree_attention(model):
            raise UserError(
                f"{type(model).__name__} has sliding-window or recurrent layers, which this sampler can't serve: "
                "choose a model with full attention in every layer."
            )
        pack_linear_layers(model)

    def follow(self, policy) -> None:
        """Sample from `policy` (a PEFT model with LoRA adapters) as it is now; call again after each update."""
        self._source = policy
        self._base = policy.get_base_model()
        self._merged = None

    @torch.inference_mode()
    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Completions in the order of `requests`; the same requests give the same completions."""
        done: dict[int, Completion] = {}

        def weights_of(index: int) -> tuple[str, str]:
            return str(requests[index].weights or ""), requests[index].adapter

        order = sorted(range(len(requests)), key=lambda i: (weights_of(i), requests[i].prompt_ids, requests[i].seed))
        for _, same in groupby(order, key=weights_of):
            chosen = list(same)
            self._merge(requests[chosen[0]].weights, requests[chosen[0]].adapter)
            for start in range(0, len(chosen), self.batch):
                part = chosen[start : start + self.batch]
                done.update(zip(part, self._generate_batch([requests[i] for i in part]), strict=True))
        return [done[index] for index in range(len(requests))]

    def _merge(self, weights: Path | None, adapter: str) -> None:
        """Have the original weights plus the wanted adapter in the sampler's model."""
        if self._merged == (weights, adapter):
            return
        if weights is not None:
            deltas = deltas_in(weights)
        else:
            deltas = {} if self._source is None else deltas_of(self._source, adapter)
        self._merged, self._changed = None, {*self._changed, *deltas}  # until it is done: an interrupt may come
        for name in self._changed:
            weight = original_weight(self._base, name)
            put_weight(self.model.get_submodule(name), weight + deltas[name].to(weight) if name in deltas else weight)
        self._changed = set(deltas)
        self._merged = (weights, adapter)
        self._stems = []

    def _generate_batch(self, requests: list[SamplingRequest]) -> list[Completion]:
        rows = [_Row(request) for request in requests]
        tree = prefix_tree.build([request.prompt_ids for request in requests])
        memory, logits = self._prefill(tree, max(request.max_tokens for request in requests))
        live, guesses = rows, [[] for _ in rows]
        while True:
            self._grow(live, guesses, logits)
            keep = [place for place, row in enumerate(live) if not row.finish]
            if not keep:
                return [row.completion() for row in rows]
            if len(keep) < len(live):
                live = [live[place] for place in keep]
                memory.keep(keep)
            guesses = [row.guess(PASS // len(live) - 1) for row in live]
            logits = self._decode(memory, live, guesses)

    def _grow(self, rows: list[_Row], guesses: list[list[int]], logits: Tensor) -> None:
        """Append to each row the tokens that `logits` [T, V] decide: one, and another after each right guess."""
        first = np.cumsum([0, *(1 + len(guess) for guess in guesses)])
        growing, step = list(range(len(rows))), 0
        while growing:
            choices = _choose(logits[first[growing] + step].float(), [rows[place] for place in growing])
            for place, choice in zip(growing, choices, strict=True):
                rows[place].take(choice, self._ends)
            growing = [
                place
                for place in growing
                if not rows[place].finish and guesses[place][step : step + 1] == rows[place].ids[-1:]
            ]
            step += 1

    def _ends(self, ids: list[int], stop: str | None) -> bool:
        """Whether a completion is over with its last token."""
        if ids[-1] in self.stop_ids:
            return True
        # A token has at least one byte: the marker is in the text of the last few, with room for a cut character.
        return stop is not None and stop in self._decode_text(ids[-len(stop) - 4 :])

    def _prefill(self, tree: PrefixTree, room: int) -> tuple[Rows, Tensor]:
        """Run the tree's nodes in depth-first blocks; rows with room for so many tokens, and [rows, V] logits at row ends."""
        device = self.model.device
        memory = Prefilled(self.model.config, tree, self.model.dtype, device, self._known(tree))
        ends = np.array([path[-1] for path in tree.paths])
        logits: Tensor | None = None
        for queries, visible in tree.blocks(PREFILL_BLOCK, memory.start):
            memory.enter(queries, visible)
            here = np.flatnonzero((ends >= queries.start) & (ends < queries.stop))
            out = self.model(
                input_ids=torch.from_numpy(tree.tokens[queries.start : queries.stop])[None].to(device),
                position_ids=torch.from_numpy(tree.positions[queries.start : queries.stop])[None].to(device),
                logits_to_keep=torch.from_numpy(ends[here] - queries.start).to(device),
                **forward_arguments(memory, self.model),
            ).logits[0]
            if logits is None:
                logits = torch.empty(len(ends), out.shape[-1], dtype=torch.float32, device=device)
            logits[torch.from_numpy(here).to(device)] = out.float()
        stem = memory.stem()
        self._remember(stem)
        return Rows(memory, stem, room), logits

    def _known(self, tree: PrefixTree) -> Stem | None:
        """What an earlier prefill computed of this tree's stem."""
        wanted = tuple(tree.tokens[: tree.stem].tolist())
        best, length = None, SHORTEST_STEM - 1
        for stem in self._stems:
            common = prefix_tree.common_prefix(stem.tokens, wanted)
            if common > length:
                best, length = stem, common
        return (
            None
            if best is None
            else Stem(best.tokens[:length], best.keys[..., :length, :], best.values[..., :length, :])
        )

    def _remember(self, stem: Stem) -> None:
        """Keep the latest few, without those that a longer one begins with."""
        if len(stem.tokens) >= SHORTEST_STEM:
            others = [old for old in self._stems if old.tokens != stem.tokens[: len(old.tokens)]]
            self._stems = [stem, *others][:STEMS]

    def _decode(self, memory: Rows, rows: list[_Row], guesses: list[list[int]]) -> Tensor:
        """One pass over the last token of each live row and the guess behind it; [T, V] logits."""
        tokens = [[row.ids[-1], *guess] for row, guess in zip(rows, guesses, strict=True)]
        positions = memory.advance([len(row.ids) - 1 for row in rows], [len(each) for each in tokens])
        return self.model(
            input_ids=torch.tensor([sum(tokens, [])], device=self.model.device),
            position_ids=positions[None],
            **forward_arguments(memory, self.model),
        ).logits[0]


class _Row:
    """A completion in the making."""

    def __init__(self, request: SamplingRequest):
        self.request = request
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish: Literal["stop", "length"] | None = None
        self.noise = np.random.default_rng(request.seed)
        self._lookup = Lookup(request.prompt_ids)

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next."""
        return self._lookup.guess(min(most, self.room()))

    def room(self) -> int:
        """Tokens that may still follow, but for the last, which needs no pass."""
        return self.request.max_tokens - len(self.ids) - 1

    def take(self, choice: tuple[int, float], ends: Callable[[list[int], str | None], bool]) -> None:
        """Append a token, and set `finish` when it was the last."""
        token, logprob = choice
        self.ids.append(token)
        self._lookup.add(token)
        self.logprobs.append(logprob)
        if ends(self.ids, self.request.stop):
            self.finish = "stop"
        elif len(self.ids) >= self.request.max_tokens:
            self.finish = "length"

    def completion(self) -> Completion:
        return Completion(tuple(self.ids), tuple(self.logprobs), self.finish)


def _choose(logits: Tensor, rows: list[_Row]) -> list[tuple[int, float]]:
    """The next token of each row with its log-probability, by inverse transform of one uniform number a row.

    logits [R, V]. Log-probabilities are of softmax(logits / temperature) over the whole vocabulary.
    """
    temperatures = torch.tensor([row.request.temperature or 1.0 for row in rows], device=logits.device)
    logprobs = torch.log_softmax(logits / temperatures[:, None], dim=-1)
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    greedy = [place for place, row in enumerate(rows) if not row.request.temperature]
    sampled = [place for place, row in enumerate(rows) if row.request.temperature]
    if greedy:
        tokens[greedy] = logprobs[greedy].argmax(-1)
    if sampled:
        uniform = torch.tensor([rows[place].noise.random() for place in sampled], device=logits.device)
        allowed = _truncate(logprobs[sampled].exp(), [rows[place].request for place in sampled])
        cumulative = allowed.cumsum(-1)
        total = cumulative[:, -1:]
        # Below the total, where rounding can carry it: the first token whose sum is above then has a probability.
        target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(cumulative, target, right=True).squeeze(1)
        tokens[sampled] = drawn.clamp(max=logits.shape[-1] - 1)  # of NaN: training sees it in the log-probability
    chosen = logprobs.gather(1, tokens[:, None]).squeeze(1)
    return list(zip(tokens.tolist(), chosen.tolist(), strict=True))


def _truncate(probabilities: Tensor, requests: list[SamplingRequest]) -> Tensor:
    """Set the tokens that top-k and then top-p rule out to probability 0; [R, V]."""
    if all(request.top_k is None and request.top_p == 1.0 for request in requests):
        return probabilities
    ordered, index = probabilities.sort(-1, descending=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    most = torch.tensor([request.top_k or ordered.shape[-1] for request in requests], device=ordered.device)
    ordered = ordered.masked_fill(rank[None] >= most[:, None], 0.0)
    mass = torch.tensor([request.top_p for request in requests], device=ordered.device)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= mass[:, None] * ordered.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(probabilities).scatter(-1, index, ordered)

"""Replies that a prompt search has had, in a file, so that a search that was killed asks for none of them again.

MIPROv2 and GEPA have no state that could be loaded, but all that they do follows from their seeds and from replies.
Started again, they ask for the same in the same order: they are told what they were told before, and go on from there.
What they then sample is as repeatable as the sampler: it rounds differently with what else is in a batch.

A line of the file has one reply, under the hash of its request and sealed with a key that only the whole request gives.
Whoever can open it has its prompt, and could sample the reply as well: the file tells nothing of private rows.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmgrpo.hashing import sha256_of
from mmgrpo.json_files import write_json
from mmgrpo.policy.merging import WEIGHTS
from mmgrpo.policy.sampler import Completion, Sampler, SamplingRequest

SETTING = "mmgrpo_replies"  # of DSPy's, so that every thread of a search finds them
STEM = "replies"  # of the file, and of one that was set aside
NONCE = 16  # bytes


class Replies:
    """The replies of one search. For one batch at a time, which the engine's batcher sees to.

    `conditions` are what decides on replies and is no part of a request. A file that was kept under others is set aside;
    a line that was cut short or changed is left out, and its reply sampled anew.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, str]):
        self.file = folder / f"{STEM}.jsonl"
        self._samplers: dict[tuple[Sampler, str], KeepingSampler] = {}
        self._hashes: dict[Path, str] = {}  # of adapters
        self._sealed = _read(self.file, conditions)
        if self._sealed:
            print(f"{len(self._sealed)} replies are found in {self.file}: the search goes on after them.", flush=True)
        if not self.file.exists():
            write_json(dict(conditions), self.file, private=True)

    def before(self, sampler: Sampler, model: str) -> KeepingSampler:
        """The sampler of `model` that asks these replies first; the same one each time."""
        return self._samplers.setdefault((sampler, model), KeepingSampler(sampler, model, self))

    def of(self, request: bytes) -> Completion | None:
        """The reply to a request, if there is one."""
        sealed = self._sealed.get(_name(request))
        return None if sealed is None else _open(sealed, request)

    def keep(self, replies: Mapping[bytes, Completion]) -> None:
        """Append the replies to these requests to the file."""
        sealed = {_name(request): _seal(reply, request) for request, reply in replies.items()}
        # Each line begins with its line break: one that a kill cuts short spoils no other.
        lines = ["\n" + json.dumps([*pair, _checksum(*pair)]) for pair in sealed.items()]
        with self.file.open("a", encoding="ascii") as stream:
            stream.write("".join(lines))
        self._sealed |= sealed

    def request(self, model: str, wanted: SamplingRequest) -> bytes:
        """All that a reply depends on, apart from the conditions. A greedy one doesn't depend on the seed."""
        parts = dataclasses.asdict(wanted)
        parts["weights"] = None if wanted.weights is None else self._hash_of(wanted.weights)
        parts["seed"] = wanted.seed if wanted.temperature > 0 else None
        return json.dumps([model, parts], sort_keys=True).encode()

    def _hash_of(self, adapter: Path) -> str:
        if adapter not in self._hashes:
            self._hashes[adapter] = sha256_of(adapter / WEIGHTS)
        return self._hashes[adapter]


class KeepingSampler(Sampler):
    """Samples what is not among the replies yet, and keeps it there. Nothing is trained during a search."""

    def __init__(self, sampler: Sampler, model: str, replies: Replies):
        self._sampler = sampler
        self._model = model
        self._replies = replies

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Completions in the order of `requests`; equal ones are sampled once."""
        asked = [self._replies.request(self._model, wanted) for wanted in requests]
        known = {request: self._replies.of(request) for request in asked}
        missing = {request: wanted for request, wanted in zip(asked, requests, strict=True) if known[request] is None}
        if missing:
            sampled = dict(zip(missing, self._sampler.generate(list(missing.values())), strict=True))
            self._replies.keep(sampled)
            known |= sampled
        return [known[request] for request in asked]


def remove(folder: Path) -> None:
    """Remove all kept replies below `folder`, and `folder` where nothing else is in it."""
    for file in folder.rglob(f"*{STEM}.*"):  # also what a kill left of one that was being written
        file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read(file: Path, conditions: Mapping[str, str]) -> dict[str, str]:
    """The sealed replies of a file, by the name of their request. Sets a file aside that others were kept in."""
    if not file.exists():
        return {}
    first, *lines = file.read_text(encoding="ascii", errors="replace").split("\n")
    found = _parsed(first)
    if found != conditions:
        aside = file.with_suffix(".outdated")
        os.replace(file, aside)
        other = [name for name in conditions if not isinstance(found, dict) or found.get(name) != conditions[name]]
        print(f"{file} was kept under other conditions ({', '.join(other)}): set aside as {aside.name}.", flush=True)
        return {}
    sealed = {}
    for line in lines:
        match _parsed(line):
            case [str(name), str(reply), checksum] if checksum == _checksum(name, reply):
                sealed[name] = reply
    return sealed


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _name(request: bytes) -> str:
    return hashlib.sha256(request).hexdigest()


def _checksum(name: str, sealed: str) -> str:
    return hashlib.sha256(f"{name} {sealed}".encode()).hexdigest()[:16]


def _seal(reply: Completion, request: bytes) -> str:
    nonce = secrets.token_bytes(NONCE)  # no two texts under one key, should a reply ever be kept twice
    text = json.dumps([reply.ids, reply.logprobs, reply.finish]).encode()
    return base64.b64encode(nonce + _masked(text, nonce + request)).decode()


def _open(sealed: str, request: bytes) -> Completion:
    content = base64.b64decode(sealed)
    nonce, text = content[:NONCE], content[NONCE:]
    ids, logprobs, finish = json.loads(_masked(text, nonce + request))
    return Completion(tuple(ids), tuple(logprobs), finish)


def _masked(text: bytes, key: bytes) -> bytes:
    """The text under a keystream of SHAKE-256; masked again, it is as before."""
    stream = hashlib.shake_256(key).digest(len(text))
    return bytes(one ^ other for one, other in zip(text, stream, strict=True))

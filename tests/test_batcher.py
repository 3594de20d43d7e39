"""Calls from many threads meet in batches, and nobody waits for ever."""

import threading
import time

import pytest

from mmgrpo.policy import batcher as batcher_module
from mmgrpo.policy.batcher import Batcher

PATIENCE = 10.0  # seconds after which a test calls a thread stuck


class Generator:
    """Answers each question with its square, and keeps the batches; a negative question breaks its batch."""

    def __init__(self):
        self.batches = []

    def __call__(self, questions):
        self.batches.append(sorted(questions))
        if min(questions) < 0:
            raise ArithmeticError("no square root")
        return [question**2 for question in questions]


def start(*works):
    """One daemon thread for each piece of work."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


def finish(threads):
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"


def rollout(batcher, leave, questions, answers):
    """A worker that asks its questions one after the other and then leaves."""

    def work():
        try:
            for question in questions:
                try:
                    answers[question] = batcher.ask(question)
                except (ArithmeticError, ValueError) as error:
                    answers[question] = error
        finally:
            leave()

    return work


def run_rollouts(batcher, *questions):
    """Answers by question, of one worker for each list of questions."""
    answers = {}
    with batcher.workers(len(questions)) as leave:
        threads = start(*(rollout(batcher, leave, own, answers) for own in questions))
        batcher.drive()
        finish(threads)
    return answers


def test_calls_of_all_workers_form_one_batch():
    generator = Generator()
    answers = run_rollouts(Batcher(generator), [1, 4], [2, 5], [3, 6])
    assert generator.batches == [[1, 2, 3], [4, 5, 6]]
    assert answers == {1: 1, 2: 4, 3: 9, 4: 16, 5: 25, 6: 36}


def test_worker_that_leaves_lets_the_others_go_on():
    generator = Generator()
    answers = run_rollouts(Batcher(generator), [1], [2, 4], [3, 5, 6], [])
    assert generator.batches == [[1, 2, 3], [4, 5], [6]]
    assert len(answers) == 6


def test_batch_waits_for_the_last_worker():
    generator = Generator()
    batcher = Batcher(generator)
    answers = {}
    with batcher.workers(2) as leave:
        early = start(rollout(batcher, leave, [1], answers))
        time.sleep(5 * batcher_module.QUIET_SECONDS)
        assert generator.batches == []
        late = start(rollout(batcher, leave, [2], answers))
        batcher.drive()
        finish(early + late)
    assert generator.batches == [[1, 2]]


def test_worker_that_holds_what_another_waits_for_is_answered_without_it(monkeypatch):
    monkeypatch.setattr(batcher_module, "STALL_SECONDS", 0.1)
    generator = Generator()
    batcher, lock, answers = Batcher(generator), threading.Lock(), {}

    def locked(leave, own):
        with lock:
            answers[own] = batcher.ask(own)
        leave()

    with batcher.workers(2) as leave:
        threads = start(lambda: locked(leave, 1), lambda: locked(leave, 2))
        with pytest.warns(UserWarning, match="1 of 2 runs have waited"):
            batcher.drive()
        finish(threads)
    assert sorted(generator.batches) == [[1], [2]] and answers == {1: 1, 2: 4}


def test_end_of_a_rollout_frees_a_call_that_waits_for_a_lost_worker():
    batcher = Batcher(Generator())
    answers = {}

    def ask():
        answers[3] = batcher.ask(3)

    with pytest.raises(KeyboardInterrupt), batcher.workers(2):
        waiting = start(ask)
        raise KeyboardInterrupt  # the second worker never comes
    finish(waiting)
    assert answers == {3: 9}


def test_error_reaches_every_caller_of_its_batch_and_no_other():
    generator = Generator()
    answers = run_rollouts(Batcher(generator), [1, 4], [-2, 5], [3, 6])
    assert generator.batches == [[-2, 1, 3], [4, 5, 6]]
    assert all(isinstance(answers[question], ArithmeticError) for question in (1, -2, 3))
    assert {question: answers[question] for question in (4, 5, 6)} == {4: 16, 5: 25, 6: 36}


def test_wrong_number_of_answers_is_an_error_for_all():
    answers = run_rollouts(Batcher(lambda questions: [0]), [1], [2])
    assert all(isinstance(answers[question], ValueError) for question in (1, 2))


def test_call_outside_a_rollout_is_answered():
    batcher = Batcher(Generator())
    assert batcher.ask(7) == 49
    with pytest.raises(ArithmeticError, match="no square root"):
        batcher.ask(-1)
    assert batcher.ask(8) == 64


def test_calls_outside_a_rollout_wait_a_moment_for_company(monkeypatch):
    monkeypatch.setattr(batcher_module, "QUIET_SECONDS", 0.5)
    generator = Generator()
    batcher = Batcher(generator)
    finish(start(*(lambda question=question: batcher.ask(question) for question in (1, 2, 3))))
    assert generator.batches == [[1, 2, 3]]


def test_calls_outside_a_rollout_wait_for_those_that_are_expected():
    generator = Generator()
    batcher = Batcher(generator)
    batcher.expect(2)
    early = start(lambda: batcher.ask(1))
    time.sleep(5 * batcher_module.QUIET_SECONDS)
    assert generator.batches == []
    finish(early + start(lambda: batcher.ask(2)))
    assert generator.batches == [[1, 2]]
    lone = start(lambda: batcher.ask(3))
    time.sleep(5 * batcher_module.QUIET_SECONDS)
    batcher.expect(1)
    finish(lone)
    assert generator.batches == [[1, 2], [3]]


def test_expected_call_that_never_comes_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(batcher_module, "STALL_SECONDS", 0.1)
    batcher = Batcher(Generator())
    batcher.expect(2)
    assert batcher.ask(3) == 9


def test_thread_ends_after_idling_and_the_next_call_starts_another(monkeypatch):
    monkeypatch.setattr(batcher_module, "IDLE_SECONDS", 0.05)
    batcher = Batcher(Generator())
    before = set(threading.enumerate())
    batcher.ask(1)
    (thread,) = set(threading.enumerate()) - before
    finish([thread])
    answers = []
    finish(start(lambda: answers.append(batcher.ask(2))))
    assert answers == [4]


def test_rollout_is_answered_on_the_thread_that_drives_it_alone():
    """Also right after calls from outside, whose thread still waits for more."""
    threads = []

    def generate(questions):
        threads.append(threading.current_thread())
        return questions

    batcher = Batcher(generate)
    batcher.ask(0)
    (serving,) = set(threads)
    assert serving.is_alive()
    for _ in range(20):
        run_rollouts(batcher, [1, 2], [3, 4])
    assert set(threads[1:]) == {threading.current_thread()}


def test_call_from_outside_that_came_during_a_rollout_is_answered_after_it():
    batcher = Batcher(Generator())
    answers = {}
    with batcher.workers(1) as leave:
        outside = start(rollout(batcher, lambda: None, [5], answers))
        while not batcher._waiting:
            time.sleep(0.001)
        leave()
        batcher.drive()
    finish(outside)
    assert answers == {5: 25}

"""The number of threads that follows the machine: on a made machine with a clock of its own."""

import copy
import random
from collections.abc import Callable

import numba
import numpy as np
import pytest

import fastformer as ff
from fastformer import threads
from fastformer.thread_choice import AdaptiveThreads, ThreadChoice, numbers_of_threads

# Seconds of a call on (one thread, two threads): nothing else runs, and each core is busy.
SMALL = {"quiet": (0.0019, 0.0014), "busy": (0.0033, 0.032)}
LARGE = {"quiet": (0.060, 0.041), "busy": (0.119, 0.220)}
TINY = {"quiet": (0.0003, 0.0004), "busy": (0.0005, 0.030)}


class Machine:
    """Calls that take as long as a table says, and some more or less."""

    def __init__(self, seconds: dict[str, tuple[float, float]]) -> None:
        self.seconds, self.now, self.random = seconds, 0.0, random.Random(0)
        self.choice = ThreadChoice(2, clock=lambda: self.now)

    def run(self, state: str, seconds: float) -> tuple[float, float]:
        """Return the mean over the better fixed number's, and the share of calls on two threads."""
        begin, calls, on_two = self.now, 0, 0
        while self.now < begin + seconds:
            threads = self.choice.threads
            took = self.seconds[state][threads - 1] * self.random.lognormvariate(0, 0.1)
            had = threads * (1.0 if state == "quiet" else 0.5) * took
            self.now += took
            self.choice.finished(took, had, work=100)
            calls, on_two = calls + 1, on_two + (threads == 2)
        return (self.now - begin) / calls / min(self.seconds[state]), on_two / calls


@pytest.mark.smoke
@pytest.mark.parametrize("seconds", [SMALL, LARGE, TINY])
def test_the_fastest_number_is_found_and_left_when_other_programs_come_and_go(
    seconds: dict[str, tuple[float, float]],
) -> None:
    machine = Machine(seconds)
    for state in ("quiet", "busy", "quiet", "busy"):
        machine.run(state, 3)
        ratio, on_two = machine.run(state, 10)
        assert ratio < (1.05 if state == "quiet" else 1.15)
        best = 1 if seconds[state][0] < seconds[state][1] else 2
        assert (on_two > 0.5) == (best == 2)


def test_tries_cost_no_more_than_their_share_while_nothing_changes() -> None:
    machine = Machine(SMALL)
    assert machine.run("quiet", 60)[0] < 1.02
    assert 0.9 < machine.run("quiet", 60)[1] < 1  # it does try


def test_one_slow_call_changes_nothing() -> None:
    machine = Machine(SMALL)
    machine.run("quiet", 5)
    machine.choice.threads = 2
    machine.choice.finished(seconds=30.0, core_seconds=60.0, work=100)  # a kernel is compiled
    assert machine.run("quiet", 1)[1] > 0.9


def test_a_first_call_that_compiles_says_nothing_of_speed() -> None:
    choice = ThreadChoice(2, clock=lambda: 0.0)
    choice.finished(30.0, 60.0, 100)
    assert not choice._known


def test_which_numbers_are_tried() -> None:
    assert [numbers_of_threads(most) for most in (1, 2, 3, 4, 8, 12)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 4, 7, 8], [1, 2, 4, 8, 11, 12],
    ]  # fmt: skip


def test_the_best_of_many_numbers_is_reached_step_by_step() -> None:
    now = 0.0
    choice = ThreadChoice(8, clock=lambda: now)
    slow = {1: 8.0, 2: 4.0, 4: 2.0, 7: 5.0, 8: 9.0}  # some cores are busy
    for _ in range(3000):
        seconds = slow[choice.threads] / 100
        now += seconds
        choice.finished(seconds, choice.threads * seconds / 2, 1)
    assert choice._chosen == 4


# ---- in a model ----

CONFIG = ff.TransformerConfig(vocab_size=20, embed_dim=16, num_heads=2, num_layers=1, ffn_dim=32)
BATCH = ff.pack([[1, 2, 3]] * 8)


class Scripted(ThreadChoice):
    """Uses one thread, then two, and so on."""

    def finished(self, seconds: float, core_seconds: float, work: float) -> None:
        assert seconds > 0 and core_seconds >= 0 and work > 0
        self.threads = 3 - self.threads


@pytest.fixture
def pool_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("there is one thread only")
    monkeypatch.setattr(threads, "_fixed", False)
    monkeypatch.setattr("fastformer.thread_choice.ThreadChoice", Scripted)
    before = numba.get_num_threads()
    numba.set_num_threads(2)
    yield
    numba.set_num_threads(before)


def counted(model: ff.Transformer, act: Callable[[], object]) -> list[int]:
    """Return the number of threads after each of four calls."""
    found = []
    for _ in range(4):
        act()
        found.append(numba.get_num_threads())
    return found


@pytest.mark.usefixtures("pool_of_two")
def test_a_model_uses_the_number_that_is_chosen_and_its_bits_stay() -> None:
    model = ff.Transformer(CONFIG, seed=1)
    results = [model.forward(BATCH) for _ in range(4)]
    assert all(np.array_equal(results[0], result) for result in results)
    model = ff.Transformer(CONFIG, seed=1)
    targets, loss_fn = np.zeros(8, np.int64), ff.CrossEntropyLoss()
    gradients = lambda: ff.accumulate_gradients(model, BATCH, targets, loss_fn)  # noqa: E731
    assert counted(model, gradients) == [2, 1, 2, 1]
    assert counted(model, lambda: model.forward(BATCH)) == [2, 1, 2, 1]
    # A number that somebody else sets is the most from then on.
    numba.set_num_threads(1)
    numba.set_num_threads(2)


@pytest.mark.usefixtures("pool_of_two")
def test_a_number_that_was_given_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ff.Transformer(CONFIG, seed=1)
    threads.configure(2)
    assert counted(model, lambda: model.forward(BATCH)) == [2, 2, 2, 2]


@pytest.mark.usefixtures("pool_of_two")
def test_a_copied_model_has_seen_no_work() -> None:
    model = ff.Transformer(CONFIG, seed=1)
    model.forward(BATCH)
    assert model.threads._choices
    copied = copy.deepcopy(model)
    assert not copied.threads._choices
    assert counted(copied, lambda: copied.forward(BATCH)) == [2, 1, 2, 1]


def test_the_reference_path_sets_no_threads(pool_of_two: None) -> None:
    model = ff.Transformer(CONFIG, seed=1, backend="reference")
    assert counted(model, lambda: model.forward(BATCH)) == [2, 2, 2, 2]


def test_what_raises_teaches_nothing() -> None:
    adaptive = AdaptiveThreads("numba")
    with pytest.raises(ZeroDivisionError), adaptive.at("forward", 10):
        raise ZeroDivisionError

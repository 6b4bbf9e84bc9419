"""Tiny versions of the rows on files and on going on, so that they stay runnable."""

from runs import one_thread

from tests.scorecard import determinism, files, loading

__all__ = ["one_thread"]  # a fixture that every test here uses


def test_rows_on_files_are_reached():
    assert files.measure_truncations("fast").reached
    assert files.measure_interoperability("fast").reached


def test_fuzzing_counts_what_is_no_clear_error():
    assert files.fuzz((1, 500))[0] == 500
    assert files.planted_crash() == 1


def test_a_run_goes_on_from_every_step():
    found = determinism.measure_resume("fast", epochs=2)
    assert found.cases == 19
    assert found.reached, found


def test_threads_change_no_bit_and_a_sum_that_they_cut_is_noticed():
    runs = [
        determinism.on_threads("omp", threads, *fault, epochs=1)["digest"]
        for fault in ((), ("chunks-of-threads",))
        for threads in (1, 3)
    ]
    assert runs[0] == runs[1]
    assert runs[2] != runs[3]


def test_an_order_of_hashes_is_noticed():
    one, two = (determinism.process(n, None, "order-of-hashes", epochs=1) for n in (1, 2))
    found = determinism.finding({"1": one, "2": two}, [True])
    assert not found.reached
    assert found.failures == ("2: another hash",)


def test_loading_executes_nothing_and_loaders_that_do_are_noticed():
    found = loading.measure("fast", 50)
    assert found.cases > 1500
    assert found.reached, found

"""Tiny versions of the rows on files and on going on, so that they stay runnable."""

from runs import one_thread

from tests.scorecard import determinism, files

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

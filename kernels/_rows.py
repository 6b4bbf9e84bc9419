"""How work on the rows of a matrix is cut: by its size, never by the number of threads."""

from ._compile import kernel

# Elements that make a task worth its start, and the most tasks (so also the most partial sums).
TASK_ELEMENTS = 4096
MOST_TASKS = 32
# Long sums are made of sums of so many terms: the error of a chain grows with its length.
SUM_BLOCK = 16


@kernel
def row_tasks(rows, columns):
    """Return the number of tasks for a matrix."""
    return max(1, min(MOST_TASKS, rows, rows * columns // TASK_ELEMENTS))

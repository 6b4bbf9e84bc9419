"""Rows D1 to D7: memory, misuse, damage and extreme values; the measurements are in other files."""

from tests.scorecard import cells, damage, extremes, memory

ROWS = (*memory.ROWS, cells.ROW, damage.ROW, extremes.ROW)

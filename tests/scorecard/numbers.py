"""Rows A2 to A4: what the kernels compute; the measurements are in files of their own."""

from tests.scorecard import elementwise, integers, jacobians

ROWS = (elementwise.ROW, jacobians.ROW, integers.ROW)

"""Measurements: what a kernel and a training step cost, beside other systems and the machine."""

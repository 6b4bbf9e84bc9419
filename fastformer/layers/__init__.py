"""Layers: they own parameters, and say what they compute as ops of a program."""

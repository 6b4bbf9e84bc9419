"""Layers: thin classes that own parameters and buffers, and call kernels."""

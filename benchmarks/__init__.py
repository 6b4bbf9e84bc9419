"""What fastformer is measured beside, and the project's own tables: `python -m benchmarks`."""

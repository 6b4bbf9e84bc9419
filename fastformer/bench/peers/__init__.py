"""What fastformer is measured beside: the same work in other frameworks.

Each module imports its framework, so it is imported only in that framework's own process.
"""

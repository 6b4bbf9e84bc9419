"""The name that `fastformer.training.callbacks` had, for programs that are written against it."""

from fastformer.training.callbacks import TrainingCallbacks as TrainingObserver

__all__ = ["TrainingObserver"]

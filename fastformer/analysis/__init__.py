"""What a trained model does: its answers, its attention, its embeddings; data first, then pictures.

Pictures import Matplotlib only when one is drawn.
"""

"""Models: settings, the encoder classifier, the causal decoder."""

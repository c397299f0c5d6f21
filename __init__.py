"""smelt: convert raw language-model weights, shrink them, and prove that they still work."""

__version__ = "0.1.0"

"""Masked language models trained on a domain's own text with Keras and TensorFlow."""

__version__ = "0.1.0"

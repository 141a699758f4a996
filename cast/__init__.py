"""CAST: carry a LoRA from the model it was trained on to another model."""

__version__ = "0.1.0"

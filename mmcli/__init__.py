"""mmcli: train a small language model from scratch, then use it."""

__version__ = "0.1.0"

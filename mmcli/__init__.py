"""mmcli: train a small language model from zero, then use it."""

__version__ = "0.1.0"

"""Models of others: a transformers folder, a MiniMind `.pth`, a GGUF file. Start at `importing/read.py`."""

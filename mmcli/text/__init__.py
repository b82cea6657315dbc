"""Text to token ids and back: the tokenizer, its training, and the chat template."""

"""In: records and a tokenizer.
Out: token ids with their loss mask, in a memory-mapped cache keyed by content.
"""

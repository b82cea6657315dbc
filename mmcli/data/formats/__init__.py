"""In: a file (text, JSONL, JSON, CSV, Parquet, compressed or not).
Out: its records with their line numbers, or the reason why one cannot be read.
"""

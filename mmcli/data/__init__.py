"""In: what a person names with `--data`.
Out: batches of token ids. In the order of the hops: formats, records, sources, encode, pack; preview and check beside.
"""

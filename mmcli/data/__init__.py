"""From files to batches: sources, records, packing, the token cache, the built-in corpus."""

"""In: what a person names with `--data` (files, folders, globs, `hf:` data sets, the built-in corpus), with weights.
Out: one stream of records, with a fingerprint of its content.
"""

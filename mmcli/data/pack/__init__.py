"""In: a token cache.
Out: the training and held-out part of it, packed into rows, and the batches of each step.
"""

"""In: a record as it was read.
Out: what its kind says it is (a text, a conversation, a preference pair), kept or rejected with a reason.
"""

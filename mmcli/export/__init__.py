"""A trained model in other programs' formats, proven to compute what torch computes, or refused."""

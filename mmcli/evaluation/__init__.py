"""Measuring a model: held-out loss, suites of questions, and the engine that answers them."""

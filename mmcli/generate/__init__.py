"""From a model to text: the engine protocol and its engines, the sampler, conversations."""

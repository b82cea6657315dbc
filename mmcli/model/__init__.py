"""The model core: configuration and exact counts (no torch), the transformer, its experts, its files."""

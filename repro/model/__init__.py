"""A base model with adapters: sampling from it, log-probs under it, training of it."""

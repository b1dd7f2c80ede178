"""Train networks whose weights and activations live on a few levels."""

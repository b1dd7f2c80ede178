"""Integer inference: the graph of a network, and the reference network on it."""

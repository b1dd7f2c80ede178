"""Feature affinity: losses between the affinities of two feature maps."""

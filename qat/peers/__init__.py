"""Peer methods of other packages, run through our data, networks, epochs and optimizer."""

"""Other packages' low-bit training through our data, networks, epochs and optimizer."""

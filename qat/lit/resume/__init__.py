"""What makes a kill harmless: checkpoints, place, signals, guards."""

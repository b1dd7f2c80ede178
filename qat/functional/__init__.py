"""Pure tensor mathematics: no state, no modules, torch only."""

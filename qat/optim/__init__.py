"""Update rules and the optimizer that runs them around any torch optimizer."""

"""Statistics of runs: intervals, paired differences, claims, fronts."""

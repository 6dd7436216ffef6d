"""Many runs: what-if sweeps, the budget, comparisons."""

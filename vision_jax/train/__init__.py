"""The loop, the step, the state, optimisers, checkpoints and the log; none of it knows which task it runs."""

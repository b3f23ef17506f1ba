"""What is ours and not the paper's: held-out proxies judge a run that chooses its own damping, steps and end."""

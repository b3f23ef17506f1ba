"""The trainer, and beside it what resumes, saves and publishes a run."""

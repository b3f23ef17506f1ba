"""Work shared among processes, by whole batches."""

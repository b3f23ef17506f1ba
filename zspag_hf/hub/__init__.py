"""Ids and folders in, models and data sets out. What is refused raises UnlearningError."""

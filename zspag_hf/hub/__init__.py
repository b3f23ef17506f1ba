"""Ids and folders in, models and data sets out."""

"""What happened: JSON, page, figures, card and text."""

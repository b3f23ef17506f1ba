"""Zero-shot unlearning for Hugging Face image classifiers."""

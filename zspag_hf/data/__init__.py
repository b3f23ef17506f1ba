"""Images, labels and the request: what is to be forgotten, read and checked. What is refused raises UnlearningError."""

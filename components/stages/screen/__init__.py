"""screen: scores of what a sample should not be, from stored embeddings and texts. No image is opened here."""

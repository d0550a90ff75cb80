"""Images from a trained model: batches, files, edits, and the search for noise levels."""

"""A finished run becomes a folder that all hosts list, with a model card."""

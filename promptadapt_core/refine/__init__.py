"""Test-time refinement: for one user input, a search with the very image model at hand."""

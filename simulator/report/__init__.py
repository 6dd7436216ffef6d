"""What a run looks like: plots, and later pages, of results that the rest of the package worked out."""

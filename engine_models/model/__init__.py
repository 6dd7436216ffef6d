"""Models: architectures, number formats, the catalogue of names."""

"""Rules by which a batch is formed, a file each; none knows an engine."""

"""Where keys and values are kept: pages, prefix trees, tiers."""

"""Facts about hardware: devices, links, prices, and fitted kernel models, every number with its source."""

"""Which worker a router gives a request to: ideal rules on exact state, and those of products with a module each."""

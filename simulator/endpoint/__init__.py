"""A live OpenAI-compatible server: asked, timed token by token, and set beside what the simulator says of it."""

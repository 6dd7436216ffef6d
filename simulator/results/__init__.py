"""What a run amounts to: latencies, statistics, verdict, timeline, tables."""

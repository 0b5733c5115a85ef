"""What to measure and what was measured: cells, clocks, records, statistics and reports."""

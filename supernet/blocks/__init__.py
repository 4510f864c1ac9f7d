"""Building blocks: ordinary modules that exports write out (`plain`), and searchable ones that share weights."""

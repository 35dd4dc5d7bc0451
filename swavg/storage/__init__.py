"""Where bytes come from and go: sources, sinks, and names that appear whole or not at all."""

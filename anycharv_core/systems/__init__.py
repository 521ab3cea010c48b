"""One file per system: its networks, its released layout, its recipes and defaults."""

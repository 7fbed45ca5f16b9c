"""What a network is for: its loss, its metric, and the outputs that it must give."""

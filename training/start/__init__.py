"""Where a training starts: networks with the weights of published files."""

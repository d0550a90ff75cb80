"""What the networks are made of before any framework: their layers, sizes and costs."""

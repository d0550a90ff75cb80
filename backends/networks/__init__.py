"""The networks without any framework: their layers, shapes and costs."""

"""What knows a framework: layers and their order, running data, replacing a layer."""

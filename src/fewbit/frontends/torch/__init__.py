"""The PyTorch front end: any `nn.Module`, with or without a hub, a tokenizer or a configuration."""

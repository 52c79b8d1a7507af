"""The networks of the paper, in plain PyTorch."""

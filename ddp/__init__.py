"""The distributed training runtime: process group, wrapping, precision, data and the one training loop."""

"""Tasks: one file each says what a batch, a loss and a score are; its name is what models name."""

"""How a model is made data parallel, one file each: the name of the file is the name of the strategy."""

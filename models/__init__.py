"""Plain nn.Modules, one file a family; a function decorated with @model is a model of its name."""

"""The recipe: the models of what a user asks for, and how its YAML is read and checked."""

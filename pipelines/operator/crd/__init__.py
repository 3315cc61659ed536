"""The CustomResourceDefinitions, made of the recipe's models."""

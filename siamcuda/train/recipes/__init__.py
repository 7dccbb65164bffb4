"""Recipes: one file for each published system, from data to metrics."""

"""The execution part."""

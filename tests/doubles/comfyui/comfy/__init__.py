"""The library part."""

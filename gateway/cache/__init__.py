"""Answers that are made once and given to many: web files, and listings that are dear to make."""

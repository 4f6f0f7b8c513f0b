"""The dashboard: one page, the stream that feeds it, and what an administrator may do from it."""

"""What was promised to clients: every job from its submission to its end, whatever dies in between."""

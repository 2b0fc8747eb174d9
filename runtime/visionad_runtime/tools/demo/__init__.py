"""The main job end to end, on parts the demo draws itself or on the user's own."""

"""The stages between a decoded image and its verdict, as one call, and how an engine is opened and tested for them."""

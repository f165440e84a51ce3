"""What is known of a maximum: how far it can be trusted, how far it may go, and what is nearly as high."""

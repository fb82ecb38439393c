"""Where what is known of instances is kept."""

"""Where connections and transfers are kept."""

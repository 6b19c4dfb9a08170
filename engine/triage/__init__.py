"""From scores to what is done with each mask: accepted, mended by a machine, or asked of people."""

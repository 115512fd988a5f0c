"""What all pages share: the map and the style, inlined into each of them."""

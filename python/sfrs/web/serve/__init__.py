"""``sfrs serve``: a page and an HTTP endpoint that locate photographs with an index."""

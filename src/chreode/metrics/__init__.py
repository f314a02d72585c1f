"""Numbers by which fits are judged: each a plain function, with its formula, range and source."""

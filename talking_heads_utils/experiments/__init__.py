"""The book's experiments: one folder a chapter, typed rows in and out, claims and their rules, the store."""

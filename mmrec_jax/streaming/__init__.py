"""A model that lives with its stream: windows of a log, training on each, tests on the next, growth between them."""
